package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"banger/internal/agentwire"
	"banger/internal/diskcopy"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/kernel"
	"banger/internal/netstack"
	"banger/internal/operation"
	"banger/internal/paths"
	"banger/internal/progress"
	"banger/internal/store"
	"banger/internal/template"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// placeholder is the host name of the guest of a prepared template. No name is shorter, so that a VM's own can be written
// over it.
const placeholder = "x"

// prepared is the prepared template of a VM (template.Preparation), which may not be there yet.
type prepared struct {
	driver  hypervisor.Driver
	machine hypervisor.Spec
	guest   agentwire.Config // of the VM
	shape   string
	key     string
	image   string
	kernel  string
	disk    uint64
	found   template.Template // what a start is from; zero while there is none
}

// preparedOf says what the prepared template of a new VM is, or returns nil when it cannot have one.
func (f *fleet) preparedOf(ctx context.Context, v store.VM) *prepared {
	if !f.templates.on || v.Hidden() && v.Spec.Purpose != vm.PurposePool || v.ResetToken != "" {
		return nil
	}
	launch, err := f.describe(v)
	if err != nil {
		return nil // the start says so
	}
	driver, shape := f.templates.shape(ctx, &launch)
	if shape == "" {
		return nil
	}
	p := &prepared{
		driver: driver, machine: launch.Machine, guest: launch.Guest, image: v.Spec.Image, kernel: v.KernelVersion, disk: v.Spec.Disk,
	}
	// The user is in it because some directories are made for them.
	p.shape = strings.Join([]string{shape, "image " + v.ImageDigest, fmt.Sprintf("disk %d", v.Spec.Disk), "user " + launch.Guest.User}, "\n")
	p.key = template.Key(p.shape)
	return p
}

// findPrepared returns the prepared template that a new VM is to start from, or nil. One that is damaged is dropped, and
// made anew when there is time.
func (f *fleet) findPrepared(ctx context.Context, v store.VM) (p *prepared, damage error) {
	p = f.preparedOf(ctx, v)
	if p == nil || f.templates.store.Off(p.key) != nil {
		return nil, nil
	}
	found, err := f.templates.store.Get(p.key)
	if fault.Is(err, fault.Conflict) {
		f.log.WarnContext(ctx, "a prepared template cannot be used, it is dropped", "template", p.key, "error", err)
		if dropErr := f.templates.store.Drop(p.key); dropErr != nil {
			f.log.ErrorContext(ctx, "cannot drop a template", "template", p.key, "error", dropErr)
		}
		damage = err
	}
	if err != nil {
		return nil, damage
	}
	p.found = found
	return p, nil
}

// newDisk makes the disk of a new VM: a copy of the one that belongs to the prepared template, or an empty one.
func (f *fleet) newDisk(ctx context.Context, v store.VM, p *prepared) error {
	path := f.dir(v.ID).Path(paths.VMDisk)
	if p == nil {
		return f.cfg.FormatDisk(ctx, f.cfg.Paths.Disks(), v.Spec.Disk, path)
	}
	_, err := diskcopy.Copy(ctx, p.found.Disk, path)
	return err
}

// use has a launch start from the prepared template.
func (p *prepared) use(launch *vmdir.Launch, t *template.Store) {
	t.Touch(p.key)
	launch.Template, launch.TemplateKey, launch.Prepared = &p.found.Saved, p.key, true
	launch.RestoreDeadline = restoreDeadline
}

// preparer makes prepared templates in the background, one at a time, when no VM is being started.
type preparer struct {
	busy   atomic.Int32 // starts that go on
	active atomic.Bool  // one is being made, or waits for its time
}

// prepareLater has the prepared template of a VM made that was started without one.
func (f *fleet) prepareLater(ctx context.Context, v store.VM) {
	p := f.preparedOf(ctx, v)
	if p == nil || !f.preparer.active.CompareAndSwap(false, true) {
		return
	}
	f.wg.Go(func() {
		defer f.preparer.active.Store(false)
		if !f.lull(f.ctx) {
			return
		}
		if err := f.prepare(f.ctx, p, nil); err != nil && f.ctx.Err() == nil {
			f.log.WarnContext(f.ctx, "there is no prepared template", "template", p.key, "error", err)
		}
	})
}

// lull waits until no VM has been started for a while. It returns false when the daemon ends first.
func (f *fleet) lull(ctx context.Context) bool {
	for quiet := time.Duration(0); quiet < f.cfg.Times.Lull; {
		tick := f.cfg.Times.Lull / 4
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			return false
		case <-f.stopping:
			return false
		}
		if quiet += tick; f.preparer.busy.Load() > 0 {
			quiet = 0
		}
	}
	return true
}

// prepare makes a prepared template, unless it is there.
func (f *fleet) prepare(ctx context.Context, p *prepared, report progress.Func) error {
	t := f.templates
	if err := t.store.Off(p.key); err != nil {
		return err
	}
	if _, err := t.store.Get(p.key); err == nil {
		return nil
	}
	request, err := f.preparation(p)
	if err != nil {
		return err
	}
	spec := operation.Spec{Kind: "template.make", Target: p.key, Key: "template/" + p.key}
	_, err = t.ops.Share(ctx, spec, report, func(ctx context.Context, _ progress.Func) (string, error) {
		if _, err := t.store.Make(ctx, request); err != nil {
			if fault.Is(err, fault.NotFound) { // the image has been removed meanwhile
				return "", err
			}
			return "", errors.Join(err, t.failed(ctx, p.key, err))
		}
		t.evict(ctx, p.key)
		return p.key, nil
	})
	return err
}

// preparation is the request for a prepared template.
func (f *fleet) preparation(p *prepared) (template.Request, error) {
	network := netstack.For(placeholder, 2).Guest
	guest := p.guest
	guest.Hostname, guest.MachineID, guest.Network = placeholder, machineID(), network
	guest.Env, guest.Workdir, guest.ResetRoot = nil, "", ""
	spec := p.machine
	for _, file := range []string{spec.Kernel, filepath.Join(filepath.Dir(spec.Kernel), kernel.ModulesFile)} {
		if _, err := os.Stat(file); err != nil {
			return template.Request{}, fault.Wrap(fault.NotFound, err, "prepared template")
		}
	}
	return template.Request{
		Driver: p.driver, Spec: spec, Shape: p.shape, Kernel: p.kernel, Scratch: f.templates.scratch, Background: true,
		Prepare: &template.Preparation{
			Image: p.image, Guest: guest,
			Identity: agentwire.Identity{
				Hostname: placeholder, MachineID: guest.MachineID, BootID: "00000000-0000-4000-8000-000000000000", Network: network,
			},
			Disk: func(ctx context.Context, path string) error {
				return f.cfg.FormatDisk(ctx, f.cfg.Paths.Disks(), p.disk, path)
			},
		},
	}, nil
}
