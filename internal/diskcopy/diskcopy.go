// Package diskcopy copies disk images: by sharing their blocks where the file system can, else block by block without the
// holes.
package diskcopy

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// chunk is how much is copied between two looks at the context.
const chunk = 16 << 20

// Result says what a copy took.
type Result struct {
	Shared bool  // blocks are shared (reflink): it took no space yet
	Copied int64 // bytes of data
}

// Copy copies src to dst, which must not exist, readable for the user alone. src may be written to meanwhile only by who
// knows what that means. The copy is not synced. When it fails dst is removed; a disk that is full is a fault of class
// Exhausted.
func Copy(ctx context.Context, src, dst string) (Result, error) {
	in, err := os.Open(src)
	if err != nil {
		return Result{}, fault.Wrap(fault.Unavailable, err, "copy disk")
	}
	defer func() { _ = in.Close() }()
	return From(ctx, in, dst)
}

// From is Copy of a file that is open.
func From(ctx context.Context, in *os.File, dst string) (res Result, err error) {
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return res, explain(err, dst)
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			err = errors.Join(explain(err, dst), os.Remove(dst))
		}
	}()
	if res.Shared, err = clone(in, out); err != nil || res.Shared {
		return res, err
	}
	info, err := in.Stat()
	if err != nil {
		return res, err
	}
	if err := out.Truncate(info.Size()); err != nil {
		return res, err
	}
	res.Copied, err = extents(ctx, in, out)
	return res, err
}

// Share copies src to dst, which must not exist, if that takes no time because blocks are shared. If it cannot be, it is
// false. Unless it is true, dst does not exist.
func Share(src, dst string) (bool, error) {
	in, err := os.Open(src)
	if err != nil {
		return false, fault.Wrap(fault.Unavailable, err, "copy disk")
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false, explain(err, dst)
	}
	shared, err := clone(in, out)
	if err = errors.Join(err, out.Close()); err != nil {
		shared = false
	}
	if !shared {
		err = errors.Join(err, os.Remove(dst))
	}
	return shared, explain(err, dst)
}

// clone makes one file share the blocks of another one. It is false where that cannot be; a file system that can and
// has no room for it is an error, which a copy would come to as well.
func clone(in, out *os.File) (bool, error) {
	for {
		switch err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO):
			return false, os.NewSyscallError("clone", err)
		default: // not supported, or another file system
			return false, nil
		}
	}
}

// explain gives a full disk its class.
func explain(err error, path string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fault.Wrap(fault.Exhausted, err, "copy disk to %s", path)
	}
	return fault.Context(err, "copy disk to %s", path)
}

// extents copies what is not a hole.
func extents(ctx context.Context, in, out *os.File) (total int64, err error) {
	err = Data(in, func(start, end int64) error {
		for start < end {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n, err := piece(in, out, start, min(end-start, chunk))
			if err != nil {
				return err
			}
			start, total = start+n, total+n
		}
		return nil
	})
	return total, err
}

// Data calls visit with the bounds of each stretch of a file that is not a hole.
func Data(in *os.File, visit func(start, end int64) error) error {
	for at := int64(0); ; {
		start, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return os.NewSyscallError("seek", err)
		}
		end, err := unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("seek", err)
		}
		if err := visit(start, end); err != nil {
			return err
		}
		at = end
	}
}

// piece copies some bytes at the same place of both files, in the kernel if it can.
func piece(in, out *os.File, at, size int64) (int64, error) {
	from, to := at, at
	n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(size), 0)
	if err == nil && n > 0 {
		return int64(n), nil
	}
	if errors.Is(err, unix.ENOSPC) {
		return 0, os.NewSyscallError("copy_file_range", err)
	}
	copied, err := io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, at, size))
	if err == nil && copied == 0 { // it has become shorter
		err = io.ErrUnexpectedEOF
	}
	return copied, err
}
