package qemu

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor"
)

var _ hypervisor.Shaper = (*Driver)(nil)

// Shape implements hypervisor.Shaper: QEMU's arguments without what may differ, the binary, and the host's processor and
// kernel, which KVM passes through and on which the rate of the time-stamp counter depends.
func (d *Driver) Shape(ctx context.Context, spec hypervisor.Spec) (string, error) {
	host, err := d.Probe(ctx)
	if err != nil {
		return "", err
	}
	b, err := d.inspect(ctx, host.Path)
	if err != nil {
		return "", err
	}
	spec.ID, spec.Name, spec.RunDir, spec.MemoryFile, spec.Restore = "", "", "/", "", nil
	spec.Disks = slices.Clone(spec.Disks)
	for i, disk := range spec.Disks {
		spec.Disks[i].Path = "/" // one that can be written to is told its size anew
		if !disk.ReadOnly {
			continue
		}
		info, err := os.Stat(disk.Path)
		if err != nil {
			return "", err
		}
		spec.Disks[i].Path = fmt.Sprintf("/%d", info.Size())
	}
	known := machineHost{Accelerator: host.Accelerator}
	if known.Accelerator == TCG {
		known.TSCKHz = d.hostTSC()
	}
	lines := append([]string{
		fmt.Sprintf("qemu %s %s %d %d", b.Path, b.Version, b.Size, b.ModTime.UnixNano()),
		"host " + processor() + ", Linux " + release(),
	}, args(spec, known)...)
	return strings.Join(lines, "\n"), nil
}

// processor names the host's processor and what it can do.
func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	defer func() { _ = f.Close() }()
	var model, flags string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && (model == "" || flags == "") {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			flags = strings.TrimSpace(value)
		}
	}
	return model + ": " + flags
}

// release is the host kernel's.
func release() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
