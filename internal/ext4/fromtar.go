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

	"banger/internal/fault"
	"banger/internal/pipe"
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

// Filler is a stream that can also write its files itself, in any order and several at once, and say afterwards what tree
// they make. FromTar prefers that where the stream need not be hashed, and does not read such a stream.
type Filler interface {
	// Fill returns when nobody writes any more. read is the bytes of what it has read.
	Fill(ctx context.Context, w *Writer) (root *Node, read uint64, entries int, err error)
}

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
	res, err := write(ctx, f, r, opt)
	if errors.Is(err, ErrAnew) {
		if err = f.Truncate(0); err == nil {
			res, err = write(ctx, f, r, opt)
		}
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return res, fault.Context(cause, "make %s", filepath.Base(f.Name()))
		}
		if NoSpace(err) {
			return res, Exhausted(err, f.Name(), res.Read)
		}
		return res, fault.Context(err, "make %s", filepath.Base(f.Name()))
	}
	err = f.Truncate(int64(opt.Size))
	if err == nil && !opt.Temporary {
		err = f.Sync()
	}
	return res, explain(err, f.Name(), res.Read)
}

// write writes what the stream holds to f, which is empty.
func write(ctx context.Context, f *os.File, r io.Reader, opt Options) (res Result, err error) {
	w := newWriter(f, opt.Size, opt.Temporary)
	defer w.close()
	var root *Node
	if filler, ok := r.(Filler); ok && opt.Identity != "" {
		root, res.Read, res.Entries, err = filler.Fill(ctx, w)
	} else {
		root, err = readAhead(ctx, r, w, opt, &res)
	}
	if err != nil {
		return res, err
	}
	identity := sha256.Sum256([]byte(opt.Identity))
	if opt.Identity == "" {
		_, _ = hex.Decode(identity[:], []byte(strings.TrimPrefix(res.Digest, "sha256:"))) // of our own making
	}
	return res, w.finish(root, identity[:], opt.Label)
}

// readAhead makes the tree while a goroutine of its own reads the stream. That has ended when it returns, and the error is
// that of the side which failed first.
func readAhead(ctx context.Context, r io.Reader, w *Writer, opt Options, res *Result) (*Node, error) {
	ahead, out := pipe.New()
	interrupt := func() {
		if c, ok := r.(io.Closer); ok {
			_ = c.Close() // it is given up, and whoever opened it hears of its failure
		}
		ahead.Close()
	}
	stop := context.AfterFunc(ctx, interrupt)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := out.ReadFrom(r)
		out.CloseWithError(err)
	}()
	in := newInput(ctx, ahead, opt.Identity == "")
	if opt.Entries > 0 {
		in.most = min(opt.Entries, maxEntries)
	}
	stream := w.Stream()
	root, entries, err := build(in, stream)
	if closeErr := stream.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err == nil, errors.Is(err, ErrAnew):
		ahead.Close() // it has come to its end
	default:
		interrupt() // the sender may be slow
	}
	<-done
	res.Read, res.Entries = in.read, entries
	if in.hash != nil {
		res.Digest = "sha256:" + hex.EncodeToString(in.hash.Sum(nil))
	}
	return root, err
}
