package kernel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"banger/internal/fault"
	"banger/internal/kernel/cpio"
)

const (
	maxInitrd     = 512 << 20 // bytes of an initial RAM disk
	maxInitrdTree = 2 << 30   // bytes of all that is in it
)

// copyInitrd copies an initial RAM disk to the new file dst and makes sure that Linux can unpack it: one that ends in
// the middle would take banger's own, which follows it, with it.
func copyInitrd(ctx context.Context, src, dst string) error {
	if err := copyFile(ctx, src, dst, maxInitrd); err != nil {
		return err
	}
	f, err := os.OpenFile(dst, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = withMapped(f, func(data []byte) error { return checkInitrd(ctx, data) })
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// checkInitrd reads what Linux would unpack: any number of archives, filled up with zeroes between them, and then at
// most one compressed stream of archives. What may follow that is not looked at.
func checkInitrd(ctx context.Context, data []byte) error {
	plain := bufio.NewReader(contextReader{ctx, bytes.NewReader(data)})
	offset, some, err := readArchives(plain)
	if err != nil {
		return err
	}
	rest := data[offset:]
	if len(rest) == 0 {
		if !some {
			return fault.New(fault.Invalid, "it holds nothing")
		}
		return nil
	}
	r, isPlain, err := open(rest)
	if err != nil {
		return fault.Context(err, "no cpio archive at byte %d", offset)
	}
	if isPlain {
		return fault.New(fault.Invalid, "no cpio archive at byte %d: a program or a kernel", offset)
	}
	limited := &io.LimitedReader{R: contextReader{ctx, r}, N: maxInitrdTree}
	_, some, err = readArchives(bufio.NewReader(limited))
	switch {
	case err != nil:
		return err
	case limited.N <= 0:
		return fault.New(fault.Invalid, "more than %d bytes when it is decompressed", int64(maxInitrdTree))
	case !some:
		return fault.New(fault.Invalid, "no cpio archive in its compressed part")
	}
	return nil
}

// readArchives reads archives and the zeroes between them. It returns the offset of what is neither, which may be the
// end, and whether there was an archive.
func readArchives(r *bufio.Reader) (offset int64, some bool, err error) {
	for {
		head, err := r.Peek(6)
		switch {
		case len(head) > 0 && head[0] == 0:
			buffered, _ := r.Peek(r.Buffered())
			zeroes := len(buffered) - len(bytes.TrimLeft(buffered, "\x00"))
			_, _ = r.Discard(zeroes)
			offset += int64(zeroes)
		case cpio.Magic(head):
			if offset%cpio.Align != 0 {
				return offset, some, fault.New(fault.Invalid, "an archive begins at byte %d, which is no multiple of %d", offset, cpio.Align)
			}
			n, err := cpio.Archive(r, nil)
			if err != nil {
				return offset, some, fault.Wrap(fault.Invalid, err, "it is damaged")
			}
			offset, some = offset+n, true
		case err != nil && err != io.EOF:
			return offset, some, fault.Wrap(fault.Invalid, err, "it is damaged")
		default:
			return offset, some, nil
		}
	}
}
