// Package instant copies a disk as it is at one instant, while a VMM goes on writing to it.
//
// The VMM sends what it is about to overwrite first (QEMU's backup job with sync=none: copy before write), over NBD; the
// rest is read from the disk itself. A cluster that the VMM has sent counts as copied before the VMM overwrites it, so
// what is read of it later, or was read half, is not used. Holes of the disk are holes of the copy, which no copy job of
// QEMU's own can do with a raw file.
package instant

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/diskcopy"
	"banger/internal/fault"
)

const (
	// cluster is the unit in which QEMU sends what it overwrites, or a part of it.
	cluster = 64 << 10
	// chunk is how much is read at once: a multiple of cluster.
	chunk = 1 << 20
	// block is the unit of holes.
	block = 4 << 10
)

// Copy is a file that becomes the disk of an instant.
type Copy struct {
	src, dst *os.File
	path     string
	size     int64
	listener net.Listener
	served   chan struct{} // closed when the server has ended

	mu   sync.Mutex // mu guards the fields below, and writes to dst
	done []uint64   // a bit for each cluster that is copied
	conn net.Conn   // of the VMM
	over bool       // Close was called
	err  error      // of a write: the copy is of no use
}

// New makes the file and listens for the VMM at socket. Close ends it. When New fails it leaves nothing.
func New(src, dst, socket string) (_ *Copy, err error) {
	c := &Copy{path: dst, served: make(chan struct{})}
	if c.src, err = os.Open(src); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "copy disk")
	}
	defer func() {
		if err != nil {
			_ = c.src.Close()
		}
	}()
	info, err := c.src.Stat()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "copy disk")
	}
	c.size = info.Size()
	c.done = make([]uint64, (c.size/cluster)/64+1)
	if c.dst, err = os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, full(err, dst)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.dst.Close(), os.Remove(dst))
		}
	}()
	if err := c.dst.Truncate(c.size); err != nil {
		return nil, full(err, dst)
	}
	_ = os.Remove(socket) // of a copy that was cut off
	if c.listener, err = net.Listen("unix", socket); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "copy disk")
	}
	go c.serve() // Close waits for it
	return c, nil
}

// serve serves the VMM, which may come again.
func (c *Copy) serve() {
	defer close(c.served)
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			return
		}
		if !c.keep(conn) {
			return
		}
		if err := serveNBD(conn, c); err != nil {
			c.fail(fault.Wrap(fault.Internal, err, "the VMM's end of the disk's copy"))
		}
		_ = conn.Close()
	}
}

// keep notes which connection Close has to close. One that comes at the last moment, which Close would not see, is closed.
func (c *Copy) keep(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		_ = conn.Close()
		return false
	}
	c.conn = conn
	return true
}

// Close ends the server and closes the files. The VMM must not need it any more.
func (c *Copy) Close() error {
	_ = c.listener.Close() // which removes the socket
	c.mu.Lock()
	c.over = true
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.mu.Unlock()
	<-c.served
	return errors.Join(c.src.Close(), c.dst.Close())
}

// Run copies what the VMM has not sent. It begins after the instant, and when it returns without an error the copy is
// complete. It is not synced.
func (c *Copy) Run(ctx context.Context) error {
	buf := make([]byte, chunk)
	err := diskcopy.Data(c.src, func(start, end int64) error {
		end = min(end, c.size) // the file is the VMM's, and may have grown
		for at := start / cluster * cluster; at < end; at += chunk {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n, err := c.src.ReadAt(buf[:min(chunk, c.size-at)], at)
			if err != nil {
				return err
			}
			if err := c.rest(buf[:n], at); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return full(err, c.path)
	}
	return c.failure()
}

// rest takes of what was read at that place what the VMM has not sent meanwhile.
func (c *Copy) rest(p []byte, at int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	for len(p) > 0 {
		n := min(len(p), cluster)
		if err := c.take(p[:n], at); err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// take writes one cluster, unless it is copied or zero. The caller holds mu.
func (c *Copy) take(p []byte, at int64) error {
	i := at / cluster
	if c.done[i/64]&(1<<(i%64)) != 0 {
		return nil
	}
	if err := c.write(p, at); err != nil {
		return err
	}
	c.done[i/64] |= 1 << (i % 64)
	return nil
}

// write writes what is not zero, in whole blocks.
func (c *Copy) write(p []byte, at int64) error {
	for len(p) > 0 {
		n := 0 // the bytes from here on that are zero, or that are not
		empty := zero(p[:min(block, len(p))])
		for n < len(p) && zero(p[n:min(n+block, len(p))]) == empty {
			n = min(n+block, len(p))
		}
		if !empty {
			if _, err := c.dst.WriteAt(p[:n], at); err != nil {
				return err
			}
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// before takes what the VMM is about to overwrite. It is called before the VMM does so. An error of the copy is no error
// of the guest's write.
func (c *Copy) before(p []byte, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at%cluster != 0 || int64(len(p))%cluster != 0 && at+int64(len(p)) != c.size {
		c.failed(fault.New(fault.Internal, "the VMM sends %d bytes at %d, which are not whole clusters", len(p), at))
	}
	for len(p) > 0 && c.err == nil {
		n := min(len(p), cluster)
		if err := c.take(p[:n], at); err != nil {
			c.failed(full(err, c.path))
		}
		p, at = p[n:], at+int64(n)
	}
}

// failed keeps the first failure. The caller holds mu.
func (c *Copy) failed(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *Copy) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed(err)
}

func (c *Copy) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// full gives a full disk its class.
func full(err error, path string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fault.Wrap(fault.Exhausted, err, "copy disk to %s", path)
	}
	return fault.Context(err, "copy disk to %s", path)
}

var zeroes [block]byte

// zero reports whether p, at most a block, has nothing but zeroes.
func zero(p []byte) bool { return bytes.Equal(p, zeroes[:len(p)]) }
