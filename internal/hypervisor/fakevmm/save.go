package fakevmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/diskcopy"
	"banger/internal/fault"
	"banger/internal/hypervisor"
)

// Shape implements hypervisor.Shaper.
func (d *Driver) Shape(_ context.Context, spec hypervisor.Spec) (string, error) {
	return shape(spec), nil
}

func shape(spec hypervisor.Spec) string {
	return fmt.Sprintf("fake 1.0\ncpus %d\nmemory %d\nkernel %s\ninitramfs %s\ndisks %d", spec.CPUs, spec.Memory, spec.Kernel,
		spec.Initramfs, len(spec.Disks))
}

// Save implements hypervisor.Saver: the memory is an empty file, the state what the agent was told.
func (m *Machine) Save(ctx context.Context, to hypervisor.Saved, opt hypervisor.SaveOptions) (report hypervisor.SaveReport, err error) {
	began := time.Now()
	made := []string{to.State, to.Memory}
	defer func() {
		if err == nil {
			return
		}
		for _, path := range made {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}()
	if err := os.WriteFile(to.Memory, nil, 0o600); err != nil {
		return report, fault.Wrap(fault.Internal, err, "fake vmm: save")
	}
	if err := os.Truncate(to.Memory, int64(m.spec.Memory)); err != nil {
		return report, fault.Wrap(fault.Internal, err, "fake vmm: save")
	}
	if err := m.command(ctx, orderSave+" "+to.State); err != nil {
		return report, err
	}
	if _, err := os.Stat(to.State); err != nil {
		return report, fault.Wrap(fault.Internal, err, "fake vmm: save")
	}
	for serial, path := range opt.Copies {
		disk, err := m.spec.Disk(serial)
		if err != nil {
			return report, err
		}
		if _, err := diskcopy.Copy(ctx, disk.Path, path); err != nil {
			return report, err
		}
		made = append(made, path)
	}
	report.Still = time.Since(began)
	return report, nil
}

// restore takes in what was saved.
func (c *childSpec) restore(spec hypervisor.Spec) error {
	c.Shape = shape(spec)
	if spec.Restore == nil {
		return nil
	}
	var state savedState
	if err := atomicfile.ReadJSON(spec.Restore.State, &state); err != nil {
		return fault.Wrap(fault.Unavailable, err, "fake vmm: saved state")
	}
	if state.Shape != c.Shape || c.Faults.RestoreError {
		return fault.New(fault.Unavailable, "fake vmm: the saved machine is another one")
	}
	c.Configured = state.Configured
	return nil
}
