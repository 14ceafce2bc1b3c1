package hypervisor

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"slices"

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

// GrowableDisk looks for the disk with that serial in s and checks that it may become bytes large. It returns the disk's
// place in s.Disks. Machines call it at the beginning of ResizeDisk.
func (s Spec) GrowableDisk(serial string, bytes uint64) (int, error) {
	i := slices.IndexFunc(s.Disks, func(d Disk) bool { return d.Serial == serial })
	if i < 0 {
		return 0, fault.New(fault.NotFound, "vm %s has no disk %q", s.Name, serial)
	}
	info, err := os.Stat(s.Disks[i].Path)
	switch {
	case err != nil:
		return 0, fault.Wrap(fault.Internal, err, "disk %s", serial)
	case s.Disks[i].ReadOnly:
		return 0, fault.New(fault.Invalid, "disk %s is read-only and cannot be resized", serial)
	case bytes > math.MaxInt64 || bytes%sector != 0:
		return 0, fault.New(fault.Invalid, "disk %s cannot have %d bytes", serial, bytes)
	case int64(bytes) < info.Size(): // the VMM would cut the file off
		return 0, fault.New(fault.Invalid, "disk %s cannot shrink from %d to %d bytes", serial, info.Size(), bytes)
	}
	return i, nil
}

// Disk looks for the disk with that serial.
func (s Spec) Disk(serial string) (Disk, error) {
	i := slices.IndexFunc(s.Disks, func(d Disk) bool { return d.Serial == serial })
	if i < 0 {
		return Disk{}, fault.New(fault.NotFound, "vm %s has no disk %q", s.Name, serial)
	}
	return s.Disks[i], nil
}

// sector is the unit of a disk's size.
const sector = 512

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

// DiskSizes returns the sizes of the disks that the guest can write to, by serial: see Saved.
func (s *Spec) DiskSizes() (map[string]uint64, error) {
	sizes := make(map[string]uint64)
	for _, disk := range s.Disks {
		if disk.ReadOnly {
			continue
		}
		info, err := os.Stat(disk.Path)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "disk %s", disk.Serial)
		}
		sizes[disk.Serial] = uint64(info.Size())
	}
	return sizes, nil
}
