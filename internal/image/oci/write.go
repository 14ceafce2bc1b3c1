package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/layer"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// Image is what is to be written or pushed. The blobs of its layers are in the store.
type Image struct {
	Config  source.Config
	Arch    string
	Layers  []source.Layer // lowest first; a DiffID that is not known is computed
	Created time.Time      // the only time that is written, so that the same image has the same digest
	History []string       // how each layer came to be, for people; may be shorter than Layers
}

// WriteOptions of WriteLayout, WriteArchive and Push.
type WriteOptions struct {
	Tag      string        // of a layout's only image; may be empty
	Progress progress.Func // stage "image"
	From     []string      // Push: references on the same registry that may have the layers already
}

// written is an image in the words of the OCI specification.
type written struct {
	layers   []source.Layer // each digest once
	config   []byte
	manifest []byte
}

// part is a blob that is in memory.
type part struct {
	digest string
	data   []byte
}

func (w written) parts() []part {
	return []part{{digestOf(w.config), w.config}, {digestOf(w.manifest), w.manifest}}
}

// assemble makes the configuration and the manifest of img.
func assemble(ctx context.Context, store *blob.Store, img Image) (written, error) {
	var out written
	created := v1.Time{Time: img.Created.UTC().Truncate(time.Second)}
	conf := v1.ConfigFile{
		Architecture: img.Arch, OS: "linux", Created: created, Config: configOf(img.Config), RootFS: v1.RootFS{Type: "layers"},
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
	for i, l := range img.Layers {
		l, err := complete(ctx, store, l)
		if err != nil {
			return written{}, fault.Context(err, "%s", label(i, len(img.Layers)))
		}
		digest, err := v1.NewHash(l.Digest)
		if err != nil {
			return written{}, fault.Wrap(fault.Invalid, err, "%s", label(i, len(img.Layers)))
		}
		diffID, err := v1.NewHash(l.DiffID)
		if err != nil {
			return written{}, fault.Wrap(fault.Invalid, err, "%s", label(i, len(img.Layers)))
		}
		by := "banger"
		if i < len(img.History) && img.History[i] != "" {
			by = img.History[i]
		}
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, diffID)
		conf.History = append(conf.History, v1.History{Created: created, CreatedBy: by})
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.MediaType(l.MediaType), Digest: digest, Size: l.Size})
		if !slices.ContainsFunc(out.layers, func(o source.Layer) bool { return o.Digest == l.Digest }) {
			out.layers = append(out.layers, l)
		}
	}
	var err error
	if out.config, err = json.Marshal(conf); err != nil {
		return written{}, err
	}
	digest, size, err := v1.SHA256(strings.NewReader(string(out.config)))
	if err != nil {
		return written{}, err
	}
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: digest, Size: size}
	out.manifest, err = json.Marshal(m)
	return out, err
}

// configOf is the opposite of parseConfig. An image that only names a login shell gets it for a command.
func configOf(c source.Config) v1.Config {
	out := v1.Config{
		User: c.User, WorkingDir: c.Workdir, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Shell: c.RunShell,
		OnBuild: c.OnBuild, Labels: c.Labels, StopSignal: c.StopSignal,
	}
	if len(c.Entrypoint)+len(c.Cmd) == 0 && c.Shell != "" {
		out.Cmd = []string{c.Shell}
	}
	for _, port := range c.ExposedPorts {
		if out.ExposedPorts == nil {
			out.ExposedPorts = map[string]struct{}{}
		}
		out.ExposedPorts[port] = struct{}{}
	}
	return out
}

// complete fills in what is not known of a layer, and checks that the store has it.
func complete(ctx context.Context, store *blob.Store, l source.Layer) (source.Layer, error) {
	size, ok := store.Stat(l.Digest)
	switch {
	case !ok:
		return l, missingBlob(l.Digest)
	case l.Size == 0:
		l.Size = size
	case l.Size != size:
		return l, invalid("blob %s has %d bytes, and its image says %d", l.Digest, size, l.Size)
	}
	l.MediaType = ociType(l.MediaType)
	if l.DiffID != "" {
		return l, nil
	}
	r, err := openStored(ctx, store, l)
	if err != nil {
		return l, err
	}
	defer r.Close()
	plain, err := layer.Decompress(l.MediaType, r)
	if err != nil {
		return l, err
	}
	defer plain.Close()
	h := sha256.New()
	if _, err := io.Copy(h, plain); err != nil {
		return l, err
	}
	l.DiffID = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return l, nil
}

// ociType is the OCI name of a layer's media type; docker's layers have the same content.
func ociType(mediaType string) string {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		return string(types.OCILayer)
	case strings.HasSuffix(mediaType, "zstd"):
		return string(types.OCILayerZStd)
	}
	return string(types.OCIUncompressedLayer)
}

func missingBlob(digest string) error {
	return fault.New(fault.NotFound, "blob %s is no longer in the store: the image has to be pulled or built again", digest).
		WithHint("banger image list")
}

// openStored reads a blob of the store, and checks it again: what is given to others has to be right.
func openStored(ctx context.Context, store *blob.Store, l source.Layer) (io.ReadCloser, error) {
	d := store.Download(blob.Wanted{Digest: l.Digest, Size: l.Size}, func(context.Context, int64) (io.ReadCloser, error) {
		return nil, missingBlob(l.Digest)
	}, nil)
	r, err := d.Reader(ctx)
	if err != nil {
		d.Close()
		return nil, err
	}
	return &stored{ReadCloser: r, share: d}, nil
}

// stored is a blob of the store that is being read.
type stored struct {
	io.ReadCloser
	share *blob.Download
}

func (s *stored) Close() error {
	err := s.ReadCloser.Close()
	s.share.Close()
	return err
}
