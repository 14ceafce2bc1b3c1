package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"

	"banger/internal/agentwire"
	"banger/internal/atomicfile"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/image"
	"banger/internal/image/blob"
	"banger/internal/image/layer"
	"banger/internal/image/source"
	"banger/internal/progress"
	"banger/internal/vm"
)

// stage is what every report of this package carries.
const stage = "image"

// Size of the VM that packs an image: it writes nothing to its disk.
const (
	packMemory = 512 << 20
	packDisk   = 512 << 20
)

// layers returns the layers of an image, all of which are in the blob store then. The caller keeps them there
// (Shelf.UseBlobs).
func (b *Builder) layers(ctx context.Context, a library.Artifact, report progress.Func) ([]source.Layer, error) {
	if b.complete(a.Layers) {
		return a.Layers, nil
	}
	unlock, err := b.packing.Lock(ctx, a.Digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	now, err := b.cfg.Images.Source().Load(a.Dir) // somebody else may have packed it while this one waited
	if err == nil && b.complete(now.Layers) {
		return now.Layers, nil
	}
	l, err := b.pack(ctx, a, report)
	if err != nil {
		return nil, fault.Context(err, "pack image %s", a.Ref())
	}
	if err := remember(a.Dir, l); err != nil { // it is packed again when it is needed again
		b.cfg.Log.WarnContext(ctx, "cannot note the layer of an image", "image", a.Ref(), "error", err)
	}
	return []source.Layer{l}, b.at(ctx, StepPacked)
}

// complete reports whether there are layers and all are in the blob store.
func (b *Builder) complete(layers []source.Layer) bool {
	for _, l := range layers {
		if size, ok := b.cfg.Blobs.Stat(l.Digest); !ok || size != l.Size {
			return false
		}
	}
	return len(layers) > 0
}

// pack makes one layer of the root file system of an image.
func (b *Builder) pack(ctx context.Context, a library.Artifact, report progress.Func) (source.Layer, error) {
	krn, err := b.kernel(ctx, a.Kernel, report)
	if err != nil {
		return source.Layer{}, err
	}
	report.Report(progress.Update{Stage: stage, Message: "packing " + a.Ref()})
	socket, end, err := b.cfg.Machines.Boot(ctx, Machine{
		Purpose: vm.PurposeExport, Image: a, Kernel: krn, CPUs: 1, Memory: packMemory, Disk: packDisk,
	})
	if err != nil {
		return source.Layer{}, err
	}
	defer end()
	done := uint64(0)
	return b.tool(ctx, socket, agentwire.ToolArchive, func(n int) {
		done += uint64(n)
		report.Report(progress.Update{Stage: stage, Message: "packing " + a.Ref(), Done: done, Unit: "bytes"})
	})
}

// remember enters in the manifest what an image was packed as. Its digest stays: the directory is the same image.
func remember(dir string, l source.Layer) error {
	m, err := image.Load(dir)
	if err != nil {
		return err
	}
	m.Layers = []source.Layer{l}
	return atomicfile.WriteJSON(filepath.Join(dir, image.ManifestFile), m)
}

// blobs are layers of the blob store for package layer.
func (b *Builder) blobs(layers []source.Layer) []layer.Blob {
	out := make([]layer.Blob, len(layers))
	for i, l := range layers {
		out[i] = layer.Blob{
			MediaType: l.MediaType, Digest: l.Digest, Size: l.Size,
			Open: func(context.Context) (io.ReadCloser, error) { return openVerified(b.cfg.Blobs, l) },
		}
	}
	return out
}

// flatten returns the tar stream of layers in the blob store. scratch is an existing directory.
func (b *Builder) flatten(ctx context.Context, layers []source.Layer, scratch string) io.ReadCloser {
	return layer.Flatten(ctx, b.blobs(layers), layer.Options{Scratch: scratch, Limits: b.cfg.Limits})
}

// openVerified opens a blob and checks it while it is read: the store is a cache that a power cut can damage.
func openVerified(store *blob.Store, l source.Layer) (io.ReadCloser, error) {
	f, err := store.Open(l.Digest)
	if err != nil {
		return nil, err
	}
	return &verified{f: f, store: store, want: l, hash: sha256.New()}, nil
}

// verified is a blob that is read.
type verified struct {
	f     *os.File
	store *blob.Store
	want  source.Layer
	hash  hash.Hash
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.f.Read(p)
	v.hash.Write(p[:n])
	if errors.Is(err, io.EOF) && "sha256:"+hex.EncodeToString(v.hash.Sum(nil)) != v.want.Digest {
		return n, errors.Join(fault.New(fault.Unavailable, "layer %s in the cache is damaged; it was removed", v.want.Digest),
			v.store.Remove(v.want.Digest))
	}
	return n, err
}

func (v *verified) Close() error { return v.f.Close() }
