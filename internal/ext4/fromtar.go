package ext4

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"banger/internal/fault"
)

// DefaultSize is the virtual size of every image. It is the same for all so that a restored guest, which remembers
// the size of the disk it was saved with, can be given any image. It is far above what a root file system holds (the
// largest with CUDA and a model are around 30 GiB), costs nothing as a hole and four blocks of group descriptors in
// the file system, and is far below the 16 TiB that is the largest file on a host's own ext4.
const DefaultSize = 64 << 30

// Options of FromTar.
type Options struct {
	Size  uint64 // virtual size; 0 means DefaultSize
	Label string // volume label, up to 16 bytes
}

// Result says what FromTar made.
type Result struct {
	Used    uint64 // bytes it takes on the host
	Read    uint64 // bytes of the tar stream
	Entries int    // entries of the tar stream
	Digest  string // of the whole tar stream, "sha256:..."
}

// FromTar writes a read-only ext4 file system with what the tar stream holds to path, which must not exist, and pads
// it with a hole to the virtual size. Owners, modes, times, hard links, device nodes and extended attributes are
// kept. The stream must be flat (no path twice but for directories; whiteouts are files like others) and must have
// its end marker: one that was cut off is refused.
//
// The file is on the disk when FromTar returns, and removed when it fails. It ends soon after ctx does; a Read that
// blocks is then ended by closing r, if r is an io.Closer.
func FromTar(ctx context.Context, r io.Reader, path string, opt Options) (Result, error) {
	if opt.Size == 0 {
		opt.Size = DefaultSize
	}
	size, err := roundUp(opt.Size)
	if err != nil {
		return Result{}, err
	}
	if len(opt.Label) > labelSize {
		return Result{}, fault.New(fault.Invalid, "volume label %q is longer than %d bytes", opt.Label, labelSize)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Result{}, explain(err, path, blockSize)
	}
	res, err := fill(ctx, f, r, size, opt.Label)
	if closeErr := f.Close(); err == nil {
		err = explain(closeErr, path, res.Read)
	}
	if err == nil {
		res.Used, err = Usage(path)
	}
	if err != nil {
		return Result{}, errors.Join(err, os.Remove(path))
	}
	return res, nil
}

// fill writes the file system, its identity and the padding to f.
func fill(ctx context.Context, f *os.File, r io.Reader, size uint64, label string) (Result, error) {
	in := newInput(ctx, r)
	entries, err := pump(ctx, in, f, size)
	res := Result{Read: in.read, Entries: entries, Digest: "sha256:" + hex.EncodeToString(in.hash.Sum(nil))}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return res, fault.Context(cause, "make %s", filepath.Base(f.Name()))
		}
		if NoSpace(err) {
			return res, Exhausted(err, f.Name(), in.read)
		}
		return res, fault.Context(err, "make %s", filepath.Base(f.Name()))
	}
	err = finish(f, in.hash.Sum(nil), label)
	if err == nil {
		err = f.Truncate(int64(size))
	}
	if err == nil {
		err = f.Sync()
	}
	return res, explain(err, f.Name(), in.read)
}

// errStopped is what the reading side gets when it writes to a converter that has ended.
var errStopped = errors.New("the converter has ended")

// sourceError marks a failure of the reading side, which the converter sees as its own read error.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

// pump runs the refined tar stream through the converter and returns the number of entries. Both sides have ended
// when it returns, and the error is that of the side which failed first.
func pump(ctx context.Context, in *input, f *os.File, size uint64) (int, error) {
	stop := context.AfterFunc(ctx, in.interrupt)
	defer stop()
	pr, pw := io.Pipe()
	var entries int
	var sourceErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if entries, sourceErr = refine(in, pw); sourceErr != nil {
			pw.CloseWithError(sourceError{sourceErr})
			return
		}
		pw.Close()
	}()
	err := convert(pr, f, size)
	pr.CloseWithError(errStopped)
	var echo sourceError
	if err != nil && !errors.As(err, &echo) {
		in.interrupt() // the reading side may be waiting for a slow sender
		<-done
		return 0, err
	}
	<-done
	if sourceErr != nil && !errors.Is(sourceErr, errStopped) {
		return 0, sourceErr
	}
	return entries, err
}

// convert writes the file system. The converter is not ours: what it panics on counts as bad input.
func convert(r io.Reader, f *os.File, size uint64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Invalid, "tar stream cannot be converted: %v", p)
		}
	}()
	err = tar2ext4.ConvertTarToExt4(r, f, tar2ext4.MaximumDiskSize(int64(size)))
	var echo sourceError
	switch {
	case err == nil, errors.As(err, &echo), isSyscall(err):
		return err
	case strings.Contains(err.Error(), "disk exceeded maximum size"): // its type is not exported
		return fault.New(fault.Exhausted, "the files do not fit into %d bytes", size)
	}
	return fault.Wrap(fault.Invalid, err, "tar stream")
}

// isSyscall tells a failure of the host from one of the input.
func isSyscall(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) || errors.Is(err, os.ErrClosed)
}
