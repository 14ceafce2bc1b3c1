package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"banger/internal/diskcopy"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/instant"
	"banger/internal/hypervisor/qmp"
)

// Disks are copied as they are at the instant that is saved. Where files can share their blocks that takes no time. Else
// QEMU sends away what it is about to overwrite from that instant on (package instant), and the guest does not wait for
// the copy. A guest that does not go on anyway is not in the way of a plain copy.

// copies are the disks to be copied in a Save.
type copies struct {
	m      *Machine
	disks  []*diskCopy
	shared bool // they share their blocks
	plain  bool // the guest does not go on: they are copied while it stands still

	rest   errgroup.Group // copies what QEMU does not send; end waits for it
	cancel context.CancelFunc
}

// diskCopy is one of them.
type diskCopy struct {
	place    int // in Spec.Disks
	from, to string
	instant  *instant.Copy // nil: shared or plain
	attached bool          // QEMU knows the target
	job      bool          // QEMU sends
	made     bool          // the file is ours to remove
}

// copySocket is the name in Spec.RunDir of the socket for the disk at a place.
func copySocket(place int) string { return fmt.Sprintf("copy%d.sock", place) }

// Names in QEMU.
func copyNode(place int) string { return fmt.Sprintf("copy%d", place) }
func copyJob(place int) string  { return fmt.Sprintf("copyjob%d", place) }

// copies prepares what opt asks for while the guest runs. When it fails nothing is left.
func (m *Machine) copies(ctx context.Context, opt hypervisor.SaveOptions) (_ *copies, err error) {
	c := &copies{m: m, cancel: func() {}}
	for serial, to := range opt.Copies {
		disk, err := m.spec.Disk(serial)
		if err != nil {
			return nil, err
		}
		if _, err := os.Lstat(to); !errors.Is(err, os.ErrNotExist) {
			return nil, fault.New(fault.Exists, "the copy of disk %s: %s exists (%v)", serial, to, err)
		}
		place := slices.Index(m.spec.Disks, disk)
		c.disks = append(c.disks, &diskCopy{place: place, from: disk.Path, to: to})
	}
	if len(c.disks) == 0 {
		return c, nil
	}
	was, err := m.status(ctx)
	if err != nil {
		return nil, err
	}
	c.plain = opt.Stay || was != stateRunning
	defer func() {
		if err != nil {
			err = errors.Join(err, c.end(ctx, false), c.remove())
		}
	}()
	c.shared = true
	for _, d := range c.disks {
		// What is on its way to the disk now need not be waited for while the guest stands still.
		if err := syncFile(d.from); err != nil {
			return nil, err
		}
		shared, err := diskcopy.Share(d.from, d.to) // can it be?
		if err == nil && shared {
			err = os.Remove(d.to)
		}
		if err != nil {
			return nil, err
		}
		c.shared = c.shared && shared
	}
	if c.shared || c.plain {
		return c, nil
	}
	for _, d := range c.disks {
		if err := d.listen(m); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// listen makes the file and listens for QEMU.
func (d *diskCopy) listen(m *Machine) (err error) {
	d.instant, err = instant.New(d.from, d.to, filepath.Join(m.spec.RunDir, copySocket(d.place)))
	d.made = err == nil
	return err
}

// still begins the copies, at the instant: the guest stands still, and QEMU has written out all that it has.
func (c *copies) still(ctx context.Context) error {
	for _, d := range c.disks {
		var err error
		switch {
		case c.shared:
			var shared bool
			if shared, err = diskcopy.Share(d.from, d.to); err == nil && !shared {
				err = fault.New(fault.Internal, "the file system does not share blocks any more")
			}
			d.made = shared
		case c.plain:
			_, err = diskcopy.Copy(ctx, d.from, d.to)
			d.made = err == nil
		default:
			err = d.begin(ctx, c.m)
		}
		if err != nil {
			return err
		}
	}
	ctx, c.cancel = context.WithCancel(ctx)
	for _, d := range c.disks {
		if d.job {
			c.rest.Go(func() error { return d.instant.Run(ctx) })
		}
	}
	return nil
}

// attach tells QEMU of the targets before the guest stands still. After a migration, which gives all disks away, it has to
// be told again (detach).
func (c *copies) attach(ctx context.Context) error {
	for _, d := range c.disks {
		if d.instant == nil {
			continue
		}
		if err := d.attach(ctx, c.m); err != nil {
			return err
		}
	}
	return nil
}

// detach takes back attach.
func (c *copies) detach(ctx context.Context) error {
	for _, d := range c.disks {
		if err := d.detach(ctx, c.m); err != nil {
			return err
		}
	}
	return nil
}

func (d *diskCopy) attach(ctx context.Context, m *Machine) error {
	if d.attached {
		return nil
	}
	target := map[string]any{
		"driver": "nbd", "node-name": copyNode(d.place), "export": "",
		"server": map[string]any{"type": "unix", "path": filepath.Join(m.spec.RunDir, copySocket(d.place))},
	}
	err := m.qmp.Execute(ctx, "blockdev-add", target, nil)
	d.attached = err == nil
	return err
}

// begin has QEMU send what it overwrites from now on. The disks of a machine that was migrated are QEMU's own again only
// when it goes on, so the target must not be one of those; and newer versions want to be told.
func (d *diskCopy) begin(ctx context.Context, m *Machine) error {
	if err := d.attach(ctx, m); err != nil {
		return err
	}
	job := map[string]any{
		"job-id": copyJob(d.place), "device": nodeName(d.place), "target": copyNode(d.place), "sync": "none",
	}
	err := m.qmp.Execute(ctx, "blockdev-backup", job, nil)
	if refused := (*qmp.Error)(nil); errors.As(err, &refused) {
		if m.qmp.Execute(ctx, "blockdev-set-active", map[string]any{"active": true}, nil) == nil {
			err = m.qmp.Execute(ctx, "blockdev-backup", job, nil)
		}
	}
	d.job = err == nil
	return err
}

// end waits for the copies if all is well, ends them, and takes back what QEMU was told. It may be called again.
func (c *copies) end(ctx context.Context, well bool) (err error) {
	if !well {
		c.cancel()
	}
	if err = c.rest.Wait(); !well {
		err = nil
	}
	c.cancel()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	for _, d := range c.disks {
		if d.instant == nil {
			continue
		}
		if detachErr := d.detach(ctx, c.m); !isClosed(c.m.process.Exited()) {
			err = errors.Join(err, detachErr)
		}
		err = errors.Join(err, d.instant.Close())
		d.instant = nil
	}
	return err
}

// detach ends the job and has QEMU forget the target.
func (d *diskCopy) detach(ctx context.Context, m *Machine) error {
	if d.job {
		if err := m.qmp.Execute(ctx, "block-job-cancel", map[string]any{"device": copyJob(d.place), "force": true}, nil); err != nil {
			return err
		}
		if err := m.jobGone(ctx, copyJob(d.place)); err != nil {
			return err
		}
		d.job = false
	}
	if d.attached {
		if err := m.qmp.Execute(ctx, "blockdev-del", map[string]any{"node-name": copyNode(d.place)}, nil); err != nil {
			return err
		}
		d.attached = false
	}
	return nil
}

// jobGone waits until QEMU has ended a block job.
func (m *Machine) jobGone(ctx context.Context, id string) error {
	for {
		var jobs []struct {
			ID string `json:"id"`
		}
		if err := m.qmp.Execute(ctx, "query-jobs", nil, &jobs); err != nil {
			return err
		}
		if !slices.ContainsFunc(jobs, func(j struct {
			ID string `json:"id"`
		}) bool {
			return j.ID == id
		}) {
			return nil
		}
		if _, err := m.nap(ctx, migrationPause); err != nil {
			return err
		}
	}
}

// remove removes the files.
func (c *copies) remove() (err error) {
	for _, d := range c.disks {
		if d.made {
			err = errors.Join(err, remove(d.to))
		}
	}
	return err
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
