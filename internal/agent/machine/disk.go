package machine

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// Where the disks are mounted in the initramfs, below everything once the root is switched.
const (
	lowerDir   = "/banger/lower"
	dataDir    = "/banger/data"
	modulesDir = "/banger/modules-image"
	rootDir    = "/banger/root"
)

// diskTimeout is how long a disk may take to appear.
const diskTimeout = 10 * time.Second

// mountDisks finds the disks by their serials and mounts them and the overlay.
func (m *Machine) mountDisks(ctx context.Context, disks agentwire.Disks) error {
	const readOnly = unix.MS_RDONLY | unix.MS_NOATIME
	if err := mountDisk(ctx, disks.Image, lowerDir, readOnly, ""); err != nil {
		return err
	}
	// The kernel would otherwise write the inode tables that mkfs left out, all over a sparse file.
	if err := mountDisk(ctx, disks.Data, dataDir, unix.MS_NOATIME, "noinit_itable"); err != nil {
		return err
	}
	var err error
	if m.data, err = openDir(dataDir); err != nil {
		return err
	}
	if err := m.grow(ctx, disks.Data); err != nil {
		m.Log("the data disk keeps its old size: " + err.Error()) // and is as good as before
	}
	if disks.Modules != "" {
		if err := mountDisk(ctx, disks.Modules, modulesDir, readOnly, ""); err != nil {
			return err
		}
		if m.modules, err = openDir(modulesDir); err != nil {
			return err
		}
	}
	return mountOverlay()
}

// mountDisk mounts the ext4 of the disk with that serial.
func mountDisk(ctx context.Context, serial, target string, flags uintptr, options string) error {
	device, err := findDisk(ctx, serial)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, target, "ext4", flags, options); err != nil {
		return fault.Wrap(mountClass(err), err, "mount disk %s", serial)
	}
	return nil
}

// findDisk waits for the disk with that serial and returns its device.
func findDisk(ctx context.Context, serial string) (string, error) {
	device := ""
	found, err := poll(ctx, diskTimeout, func() (bool, error) {
		files, _ := filepath.Glob("/sys/block/*/serial")
		for _, file := range files {
			if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == serial {
				device = "/dev/" + filepath.Base(filepath.Dir(file))
				_, err := os.Stat(device) // devtmpfs may be a moment behind
				return err == nil, nil
			}
		}
		return false, nil
	})
	if err != nil || !found {
		return "", fault.New(fault.Unavailable, "no disk has the serial %q", serial)
	}
	return device, nil
}

// mountOverlay lays the data disk's upper layer over the image.
func mountOverlay() error {
	upper, work := dataDir+"/root/upper", dataDir+"/root/work"
	for _, dir := range []string{upper, work, rootDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// Without redirect_dir a directory of the image cannot be renamed.
	options := "redirect_dir=on,lowerdir=" + lowerDir + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", rootDir, "overlay", unix.MS_NOATIME, options); err != nil {
		return fault.Wrap(mountClass(err), err, "mount the overlay")
	}
	return nil
}

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

// grow makes the data disk's file system as large as its device.
func (m *Machine) grow(ctx context.Context, serial string) error {
	path, err := findDisk(ctx, serial)
	if err != nil {
		return err
	}
	device, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = device.Close() }()
	super := make([]byte, superblockLen)
	if _, err := device.ReadAt(super, superblockOffset); err != nil {
		return err
	}
	fs, err := parseSuperblock(super)
	if err != nil {
		return err
	}
	size, err := device.Seek(0, 2)
	if err != nil {
		return err
	}
	want := uint64(size) / fs.blockSize
	if want <= fs.blocks {
		return nil
	}
	dir, err := os.Open(dataDir)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), ext4IocResizeFS, uintptr(unsafe.Pointer(&want)))
	if errno != 0 {
		return os.NewSyscallError("resize", errno)
	}
	return nil
}
