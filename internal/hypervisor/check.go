package hypervisor

import (
	"errors"
	"io/fs"
	"os"

	"banger/internal/fault"
)

// MaxSerial is the longest serial of a disk in bytes (VIRTIO_BLK_ID_BYTES).
const MaxSerial = 20

// CheckFiles looks for the files that s names, so that a missing one is told by its part in the machine and not by
// what a VMM makes of it. Drivers call it at the beginning of Start.
func (s Spec) CheckFiles() error {
	if err := checkFile("kernel", s.Kernel); err != nil {
		return err
	}
	if s.Initramfs != "" {
		if err := checkFile("initramfs", s.Initramfs); err != nil {
			return err
		}
	}
	for _, disk := range s.Disks {
		if n := len(disk.Serial); n == 0 || n > MaxSerial {
			return fault.New(fault.Invalid, "disk %s: its serial %q has not 1 to %d bytes", disk.Path, disk.Serial, MaxSerial)
		}
		if err := checkFile("disk "+disk.Serial, disk.Path); err != nil {
			return err
		}
	}
	return nil
}

func checkFile(what, path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, err, "%s", what)
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Denied, err, "%s", what)
	case err != nil:
		return fault.Wrap(fault.Internal, err, "%s", what)
	case !info.Mode().IsRegular():
		return fault.New(fault.Invalid, "%s %s is not a regular file", what, path)
	}
	return nil
}
