package machine

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// ext4 is what has to be known of a file system to grow it.
type ext4 struct {
	blocks    uint64
	blockSize uint64
}

// Places in ext4's superblock, which is 1024 bytes into the device.
const (
	superblockOffset = 1024
	superblockLen    = 1024
	offBlocksLow     = 0x4
	offLogBlockSize  = 0x18
	offMagic         = 0x38
	offIncompat      = 0x60
	offBlocksHigh    = 0x150

	ext4Magic      = 0xef53
	incompat64Bit  = 0x80
	maxLogBlockLen = 6

	ext4IocResizeFS = 0x40086610 // _IOW('f', 16, __u64)
)

// parseSuperblock reads a superblock.
func parseSuperblock(b []byte) (ext4, error) {
	le := binary.LittleEndian
	if len(b) < superblockLen || le.Uint16(b[offMagic:]) != ext4Magic {
		return ext4{}, errors.New("no ext4 file system")
	}
	log := le.Uint32(b[offLogBlockSize:])
	if log > maxLogBlockLen {
		return ext4{}, errors.New("impossible block size in the ext4 file system")
	}
	fs := ext4{blocks: uint64(le.Uint32(b[offBlocksLow:])), blockSize: 1024 << log}
	if le.Uint32(b[offIncompat:])&incompat64Bit != 0 {
		fs.blocks |= uint64(le.Uint32(b[offBlocksHigh:])) << 32
	}
	return fs, nil
}

// size is the whole file system's, in bytes.
func (fs ext4) size() uint64 { return fs.blocks * fs.blockSize }

// resizeTimeout is how long a disk may take to show its new size: the VMM announces it, the kernel's driver asks for it.
const resizeTimeout = 5 * time.Second

// Grow implements agent.System.
func (m *Machine) Grow(ctx context.Context, g agentwire.Grow) (agentwire.Grown, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data < 0 {
		return agentwire.Grown{}, fault.New(fault.Conflict, "the guest has no data disk")
	}
	grown, err := m.grow(ctx, g.Bytes)
	return grown, fault.Context(err, "grow the data disk")
}

// grow makes the data disk's file system as large as its device, once that has at least want bytes. m.mu is held.
func (m *Machine) grow(ctx context.Context, want uint64) (agentwire.Grown, error) {
	path, err := findDisk(ctx, m.dataSerial)
	if err != nil {
		return agentwire.Grown{}, err
	}
	device, err := os.Open(path)
	if err != nil {
		return agentwire.Grown{}, err
	}
	defer func() { _ = device.Close() }()
	var size int64
	reached, err := poll(ctx, resizeTimeout, func() (bool, error) {
		var err error
		size, err = device.Seek(0, io.SeekEnd)
		return uint64(size) >= want, err
	})
	if err != nil || !reached {
		return agentwire.Grown{}, errors.Join(err, fault.New(fault.Timeout, "the disk has %d bytes and not the expected %d", size, want))
	}
	fs, err := readSuperblock(device)
	if err != nil {
		return agentwire.Grown{}, err
	}
	if blocks := uint64(size) / fs.blockSize; blocks > fs.blocks {
		if err := m.resize(blocks); err != nil {
			return agentwire.Grown{}, err
		}
		if fs, err = readSuperblock(device); err != nil {
			return agentwire.Grown{}, err
		}
	}
	return agentwire.Grown{Device: uint64(size), FileSystem: fs.size()}, nil
}

// readSuperblock reads what the kernel has of it: device and mounted file system share one cache.
func readSuperblock(device io.ReaderAt) (ext4, error) {
	super := make([]byte, superblockLen)
	if _, err := device.ReadAt(super, superblockOffset); err != nil {
		return ext4{}, err
	}
	return parseSuperblock(super)
}

// resize has the kernel grow the mounted file system of the data disk.
func (m *Machine) resize(blocks uint64) error {
	dir, err := m.openData()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dir), ext4IocResizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 {
		return os.NewSyscallError("resize", errno)
	}
	return nil
}

// openData opens the root of the data disk. m.data itself has no path any more and is not open for reading, which
// ioctls and syncfs want. m.mu is held.
func (m *Machine) openData() (int, error) {
	return unix.Openat(m.data, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}
