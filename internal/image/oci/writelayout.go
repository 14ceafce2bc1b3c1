package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/progress"
)

// sink takes the files of a layout.
type sink func(name string, size int64, r io.Reader) error

// WriteLayout writes an image as an OCI image layout: a directory that must not be there yet, or be empty. After an error
// it is as it was.
func WriteLayout(ctx context.Context, store *blob.Store, dst string, img Image, opt WriteOptions) (err error) {
	dst = filepath.Clean(dst)
	if err := checkDestination(dst); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(dst), "."+filepath.Base(dst)+"-*")
	if err != nil {
		return destinationError(err, dst, 0)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.MkdirAll(filepath.Join(dir, blobsDir), 0o755); err != nil {
		return destinationError(err, dst, 0)
	}
	var total int64
	for _, l := range img.Layers {
		total += l.Size
	}
	if err := checkFree(filepath.Dir(dst), uint64(total)+spaceMargin); err != nil {
		return err
	}
	into := func(name string, size int64, r io.Reader) error {
		return destinationError(writeFile(filepath.Join(dir, name), r), dst, total)
	}
	if err := writeLayout(ctx, store, into, img, opt); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := syscall.Rename(dir, dst); err != nil { // os.Rename does not replace an empty directory
		return destinationError(&os.LinkError{Op: "rename", Old: dir, New: dst, Err: err}, dst, 0)
	}
	return nil
}

// WriteArchive writes the same as a tar stream. The same image gives the same bytes.
func WriteArchive(ctx context.Context, store *blob.Store, w io.Writer, img Image, opt WriteOptions) error {
	tw := tar.NewWriter(w)
	into := func(name string, size int64, r io.Reader) error {
		hdr := &tar.Header{
			Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: img.Created.UTC().Truncate(time.Second), Format: tar.FormatPAX,
		}
		if img.Created.IsZero() {
			hdr.ModTime = time.Unix(0, 0)
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		_, err := io.Copy(tw, r)
		return err
	}
	if err := writeLayout(ctx, store, into, img, opt); err != nil {
		return err
	}
	return tw.Close()
}

// writeLayout writes every file of a layout, the index last.
func writeLayout(ctx context.Context, store *blob.Store, into sink, img Image, opt WriteOptions) error {
	w, err := assemble(ctx, store, img)
	if err != nil {
		return err
	}
	if err := into(layoutFile, int64(len(layoutVersion)), strings.NewReader(layoutVersion)); err != nil {
		return err
	}
	u := progress.Update{Stage: "image", Message: "writing " + layersWord(len(w.layers))}
	for _, l := range w.layers {
		u.Total += uint64(l.Size)
	}
	for _, l := range w.layers {
		r, err := openStored(ctx, store, l)
		if err != nil {
			return err
		}
		err = into(blobsDir+strings.TrimPrefix(l.Digest, "sha256:"), l.Size, opt.Progress.Reader(r, u))
		r.Close()
		if err != nil {
			return err
		}
		u.Done += uint64(l.Size)
	}
	for _, p := range w.parts() {
		if err := into(blobsDir+strings.TrimPrefix(p.digest, "sha256:"), int64(len(p.data)), bytes.NewReader(p.data)); err != nil {
			return err
		}
	}
	index, err := layoutIndex(w.manifest, img.Arch, opt.Tag)
	if err != nil {
		return err
	}
	return into(indexFile, int64(len(index)), bytes.NewReader(index))
}

// layoutIndex is index.json.
func layoutIndex(manifest []byte, arch, tag string) ([]byte, error) {
	digest, size, err := v1.SHA256(bytes.NewReader(manifest))
	if err != nil {
		return nil, err
	}
	d := v1.Descriptor{
		MediaType: types.OCIManifestSchema1, Digest: digest, Size: size, Platform: &v1.Platform{OS: "linux", Architecture: arch},
	}
	if tag != "" {
		d.Annotations = map[string]string{refName: tag}
	}
	return json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d}})
}

func writeFile(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// checkDestination refuses to write over anything.
func checkDestination(dst string) error {
	entries, err := os.ReadDir(dst)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil && !errors.Is(err, fs.ErrPermission), len(entries) > 0:
		return fault.New(fault.Exists, "%s is there already", dst).WithHint("ls -la %s", dst)
	}
	return destinationError(err, dst, 0)
}

// destinationError gives a failure to write where the user wants it a class.
func destinationError(err error, dst string, needed int64) error {
	switch {
	case err == nil || isFault(err):
		return err
	case ext4.NoSpace(err):
		return ext4.Exhausted(err, dst, uint64(needed))
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Denied, err, "write %s", dst)
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, err, "write %s", dst)
	}
	return fault.Context(err, "write %s", dst)
}
