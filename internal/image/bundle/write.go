package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
)

// Contents is what goes into a bundle.
type Contents struct {
	Manifest  Manifest  // all of it but Schema and Parts, which Write fills in
	Rootfs    io.Reader // flat tar; read to its end
	KernelDir string    // a kernel's directory that goes in too; empty: none
}

// Write makes a bundle of c at path, which must not exist, and returns its manifest. The same contents give the same
// bytes. The file is there when it is whole, or not at all.
//
// The manifest comes first and says how long the root file system is, which is known last. So room is left for the first
// frame of the zstd stream; what the manifest does not need of it becomes a frame that every decoder skips.
func Write(ctx context.Context, path string, c Contents) (m Manifest, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return Manifest{}, explain(err, path)
	}
	defer func() {
		if err != nil {
			err = errors.Join(explain(err, path), f.Close(), ignoreMissing(os.Remove(f.Name())))
		}
	}()
	w := &writer{ctx: ctx, file: f, m: c.Manifest}
	if err := w.write(c); err != nil {
		return Manifest{}, err
	}
	if err := publish(f, path); err != nil {
		return Manifest{}, err
	}
	return w.m, nil
}

// publish gives the temporary file its name, if nobody else has it by now.
func publish(f *os.File, path string) error {
	err := f.Chmod(0o644) // as with any file that is made to be given away
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system without this flag
		if err = os.Link(f.Name(), path); err == nil {
			err = os.Remove(f.Name())
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), atomicfile.SyncDir(filepath.Dir(path)))
}

// writer is one Write.
type writer struct {
	ctx  context.Context //nolint:containedctx // of one Write
	file *os.File
	m    Manifest
	head int64 // room that is left for the first frame
}

func (w *writer) write(c Contents) error {
	w.m.Schema, w.m.Created = Schema, w.m.Created.UTC().Truncate(time.Second)
	w.m.Parts = []Part{{Name: RootfsName, MediaType: RootfsType, SHA256: strings.Repeat("0", 64), Size: math.MaxInt64}}
	if c.KernelDir != "" {
		part, err := measureKernel(w.ctx, c.KernelDir)
		if err != nil {
			return err
		}
		w.m.Parts = append(w.m.Parts, part)
	}
	widest, err := w.first()
	if err != nil {
		return err
	}
	w.head = int64(len(widest)) + 1024 // what zstd adds to data that it cannot compress, and a frame's header
	err = w.body(c.Rootfs)
	if errors.Is(err, ext4.ErrAnew) { // see there: once, a sender may begin anew
		err = w.body(c.Rootfs)
	}
	if err != nil {
		return err
	}
	if err := w.m.check(Limits{Size: math.MaxInt64}); err != nil {
		return err
	}
	if err := w.frame(func(to io.Writer) error { return w.tail(to, c.KernelDir) }); err != nil {
		return err
	}
	return w.begin()
}

// body writes the frame of the root file system behind the room for the first one.
func (w *writer) body(rootfs io.Reader) error {
	if err := w.file.Truncate(w.head); err != nil {
		return err
	}
	if _, err := w.file.Seek(w.head, io.SeekStart); err != nil {
		return err
	}
	return w.frame(func(to io.Writer) error { return w.rootfs(to, rootfs) })
}

// frame writes one zstd frame.
func (w *writer) frame(fill func(io.Writer) error) error {
	zw, err := zstd.NewWriter(w.file, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return err
	}
	err = fill(zw)
	if closeErr := zw.Close(); err == nil {
		err = closeErr
	}
	return err
}

// rootfs writes the root file system's data, whose header is in the first frame.
func (w *writer) rootfs(to io.Writer, from io.Reader) error {
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(to, hash), &interruptible{w.ctx, from})
	if err != nil {
		return fault.Context(err, "root file system")
	}
	w.m.Parts[0].Size, w.m.Parts[0].SHA256 = n, hex.EncodeToString(hash.Sum(nil))
	_, err = to.Write(make([]byte, -n&511)) // to whole blocks
	return err
}

// tail writes the kernel and the end of the tar.
func (w *writer) tail(to io.Writer, kernelDir string) error {
	tw := tar.NewWriter(to)
	if kernelDir != "" {
		p := w.m.Parts[1]
		if err := tw.WriteHeader(header(p.Name, p.Size)); err != nil {
			return err
		}
		hash := sha256.New()
		if err := packKernel(w.ctx, kernelDir, io.MultiWriter(tw, hash)); err != nil {
			return err
		}
		if hex.EncodeToString(hash.Sum(nil)) != p.SHA256 {
			return fault.New(fault.Conflict, "the kernel in %s changed while it was read", kernelDir)
		}
	}
	return tw.Close()
}

// first is the content of the first frame: the manifest, and the header of the part after it.
func (w *writer) first() ([]byte, error) {
	data, err := json.MarshalIndent(w.m, "", "  ")
	if err != nil {
		return nil, err
	}
	data = append(data, '\n')
	if len(data) > maxManifest {
		return nil, fault.New(fault.Invalid, "the image's configuration is too large for a bundle")
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	err = tw.WriteHeader(header(ManifestName, int64(len(data))))
	if err == nil {
		_, err = tw.Write(data)
	}
	if err == nil {
		err = tw.WriteHeader(header(RootfsName, w.m.Parts[0].Size))
	}
	return buf.Bytes(), err // and not closed: the data follows
}

// begin writes the first frame and the one that fills the rest of its room.
func (w *writer) begin() error {
	data, err := w.first()
	if err != nil {
		return err
	}
	zw, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	frame := zw.EncodeAll(data, nil)
	if err := zw.Close(); err != nil {
		return err
	}
	const skippable, headerSize = "\x50\x2a\x4d\x18", 8
	rest := w.head - int64(len(frame)) - headerSize
	if rest < 0 {
		return fault.New(fault.Internal, "the manifest does not fit into the room that was left for it")
	}
	frame = append(frame, skippable...)
	frame = append(frame, byte(rest), byte(rest>>8), byte(rest>>16), byte(rest>>24))
	_, err = w.file.WriteAt(append(frame, make([]byte, rest)...), 0)
	return err
}

// header is that of an entry of the outer tar. It says nothing of where and when it was made.
func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
}

// explain gives the failures of the host their class.
func explain(err error, path string) error {
	switch {
	case ext4.NoSpace(err):
		return ext4.Exhausted(err, path, 1<<20)
	case errors.Is(err, os.ErrExist):
		return fault.New(fault.Exists, "%s exists already", path).WithHint("rm '%s'", path)
	case errors.Is(err, os.ErrPermission):
		return fault.Wrap(fault.Denied, err, "write %s", path)
	case errors.Is(err, os.ErrNotExist):
		return fault.Wrap(fault.NotFound, err, "write %s", path).WithHint("mkdir -p '%s'", filepath.Dir(path))
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
