package ext4

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"banger/internal/fault"
	"banger/internal/pipe"
	"banger/internal/sparse"
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

	// Entries is the most that the stream may have; 0 means 16 Mi, which is also the most that is possible.
	Entries int
	// Identity says what the files are, where that is known beforehand: the stream is not hashed then and Result.Digest
	// stays empty. The volume's UUID is made from it, else from the digest.
	Identity string
	// Temporary is for a file system that need not survive a crash of the host: nothing waits for the disk.
	Temporary bool
}

// Result says what FromTar made.
type Result struct {
	Used    uint64 // bytes it takes on the host
	Read    uint64 // bytes of the tar stream
	Entries int    // entries of the tar stream
	Digest  string // of the whole tar stream, "sha256:..."; empty with Options.Identity
}

// ErrAnew is what a Read of the stream may return once, instead of its end: forget what came so far, the whole stream
// comes anew with the next Read. It is for senders that find out late that they should have said something else.
var ErrAnew = errors.New("the tar stream begins anew")

// FromTar writes a read-only ext4 file system with what the tar stream holds to path, which must not exist, and pads
// it with a hole to the virtual size. Owners, modes, times, hard links, device nodes and extended attributes are
// kept; blocks of zeros take no space. The stream must be flat (no path twice but for directories; whiteouts are files
// like others) and must have its end marker: one that was cut off is refused.
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
	opt.Size = size
	if len(opt.Label) > labelSize {
		return Result{}, fault.New(fault.Invalid, "volume label %q is longer than %d bytes", opt.Label, labelSize)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Result{}, explain(err, path, blockSize)
	}
	res, err := fill(ctx, f, r, opt)
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
func fill(ctx context.Context, f *os.File, r io.Reader, opt Options) (Result, error) {
	in := newInput(ctx, r, opt.Identity == "")
	entries, err := write(in, f, opt)
	if errors.Is(err, ErrAnew) {
		if err = f.Truncate(0); err == nil {
			in = newInput(ctx, r, opt.Identity == "")
			entries, err = write(in, f, opt)
		}
	}
	res := Result{Read: in.read, Entries: entries}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return res, fault.Context(cause, "make %s", filepath.Base(f.Name()))
		}
		if NoSpace(err) {
			return res, Exhausted(err, f.Name(), in.read)
		}
		return res, fault.Context(err, "make %s", filepath.Base(f.Name()))
	}
	identity := sha256.Sum256([]byte(opt.Identity))
	if opt.Identity == "" {
		identity = [sha256.Size]byte(in.hash.Sum(nil))
		res.Digest = "sha256:" + hex.EncodeToString(identity[:])
	}
	err = finish(f, identity[:], opt.Label)
	if err == nil {
		err = f.Truncate(int64(opt.Size))
	}
	if err == nil && !opt.Temporary {
		err = f.Sync()
	}
	return res, explain(err, f.Name(), in.read)
}

// write writes what the converter makes of the stream to f, which is empty.
func write(in *input, f *os.File, opt Options) (entries int, err error) {
	if opt.Entries > 0 {
		in.most = min(opt.Entries, maxEntries)
	}
	out := sparse.NewWriter(f)
	if !opt.Temporary {
		out.WriteBack()
	}
	entries, err = pump(in, out, opt.Size)
	if finishErr := out.Finish(); err == nil {
		err = finishErr
	}
	return entries, err
}

// sourceError marks a failure of the reading side, which the converter sees as its own read error.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

// pump runs the refined tar stream through the converter and returns the number of entries. Both sides have ended
// when it returns, and the error is that of the side which failed first.
func pump(in *input, out io.ReadWriteSeeker, size uint64) (int, error) {
	stop := context.AfterFunc(in.ctx, in.interrupt)
	defer stop()
	pr, pw := pipe.New()
	var entries int
	var sourceErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if entries, sourceErr = refine(in, pw); sourceErr != nil {
			pw.CloseWithError(sourceError{sourceErr})
			return
		}
		pw.CloseWithError(nil)
	}()
	err := convert(pr, out, size)
	pr.Close()
	var echo sourceError
	if err != nil && !errors.As(err, &echo) {
		in.interrupt() // the reading side may be waiting for a slow sender
		<-done
		return 0, err
	}
	<-done
	if sourceErr != nil && !errors.Is(sourceErr, io.ErrClosedPipe) {
		return 0, sourceErr
	}
	return entries, err
}

// convert writes the file system. The converter is not ours: what it panics on counts as bad input.
func convert(r io.Reader, out io.ReadWriteSeeker, size uint64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Invalid, "tar stream cannot be converted: %v", p)
		}
	}()
	err = tar2ext4.ConvertTarToExt4(r, out, tar2ext4.MaximumDiskSize(int64(size)))
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
