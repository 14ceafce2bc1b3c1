package machine

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agent/tool"
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

// mountDisks finds the disks by their serials and mounts them and the overlay, which is reset before if the word of reset
// is a new one.
func (m *Machine) mountDisks(ctx context.Context, config agentwire.Config) error {
	disks := config.Disks
	const readOnly = unix.MS_RDONLY | unix.MS_NOATIME
	if err := mountDisk(ctx, disks.Image, lowerDir, readOnly, ""); err != nil {
		return err
	}
	var err error
	if m.image, err = openDir(lowerDir); err != nil {
		return err
	}
	// The kernel would otherwise write the inode tables that mkfs left out, all over a sparse file.
	if err := mountDisk(ctx, disks.Data, dataDir, unix.MS_NOATIME, "noinit_itable"); err != nil {
		return err
	}
	if m.data, err = openDir(dataDir); err != nil {
		return err
	}
	m.dataSerial = disks.Data
	if _, err := m.grow(ctx, 0); err != nil {
		m.Log("the data disk keeps its old size: " + err.Error()) // and is as good as before
	}
	leftover, err := resetRoot(dataDir, config.ResetRoot)
	if err != nil {
		return fault.Context(err, "reset")
	}
	if leftover != "" {
		base := "/proc/self/fd/" + strconv.Itoa(m.data) // dataDir has no path any more once the root is switched
		go func() { _ = os.RemoveAll(filepath.Join(base, filepath.Base(leftover))) }()
	}
	if disks.Modules != "" {
		if err := mountDisk(ctx, disks.Modules, modulesDir, readOnly, ""); err != nil {
			return err
		}
		if m.modules, err = openDir(modulesDir); err != nil {
			return err
		}
	}
	if config.Build {
		if err := m.prepareBuild(config); err != nil {
			return err
		}
	}
	return m.mountOverlay(config.Build)
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

// Directories of the overlay on the data disk.
const (
	upperDir = dataDir + "/" + changesDir + "/upper"
	workDir  = dataDir + "/" + changesDir + "/work"
)

// mountOverlay lays the data disk's upper layer over the image.
func (m *Machine) mountOverlay(build bool) error {
	if err := m.makeUpper(); err != nil {
		return err
	}
	// Without redirect_dir a directory of the image cannot be renamed.
	lower, options := lowerDir, "redirect_dir=on"
	if build {
		// No form of a change that an OCI layer does not have. Nothing has to outlive the guest; what a mount before
		// has left to say that it did not is in the way.
		lower, options = lowerDir+":"+stubsDir, "redirect_dir=nofollow,metacopy=off,index=off,volatile"
		if err := os.RemoveAll(workDir); err != nil {
			return err
		}
	}
	for _, dir := range []string{workDir, rootDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options += ",lowerdir=" + lower + ",upperdir=" + upperDir + ",workdir=" + workDir
	if err := unix.Mount("overlay", rootDir, "overlay", unix.MS_NOATIME, options); err != nil {
		return fault.Wrap(mountClass(err), err, "mount the overlay")
	}
	return nil
}

// makeUpper makes the upper layer, unless it is there. Its root is what users see of the image's, so it is made equal to
// that in everything; and it hides a directory that no image has brought.
func (m *Machine) makeUpper() error {
	if _, err := os.Lstat(upperDir); err == nil {
		return nil
	}
	temp := upperDir + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.MkdirAll(temp, 0o755); err != nil {
		return err
	}
	if tool.HasLostAndFound(m.image) {
		if err := unix.Mknod(filepath.Join(temp, tool.LostAndFound), unix.S_IFCHR, 0); err != nil {
			return &os.PathError{Op: "mknod", Path: tool.LostAndFound, Err: err}
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(lowerDir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: lowerDir, Err: err}
	}
	if err := copyAttributes(lowerDir, temp, &st); err != nil {
		return err
	}
	return os.Rename(temp, upperDir)
}
