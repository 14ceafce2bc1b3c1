package daemon

import (
	"context"
	"path/filepath"

	"banger/internal/fault"
	"banger/internal/kernel"
	"banger/internal/progress"
	"banger/internal/store"
	"banger/internal/template"
	"banger/internal/vm"
)

// warmUp makes the template of VMs with a kernel, so many CPUs and so much memory, unless it is there, and returns its key.
// It needs neither an image nor a disk: read-only images are all of one size (ext4.DefaultSize), and a disk that can be
// written to is told its size when the VM is started.
func (f *fleet) warmUp(ctx context.Context, spec vm.Spec, krn Artifact, report progress.Func) (key string, err error) {
	t, name := f.templates, f.cfg.Settings.VMM.Driver
	if !t.on {
		return "", fault.New(fault.Invalid, "templates are switched off").WithHint("banger config set vmm.templates on")
	}
	dir := f.cfg.Paths.Kernel(krn.Digest)
	ramdisk, err := f.cfg.Initramfs(f.cfg.Paths.Initramfs(), dir)
	if err != nil {
		return "", fault.Context(err, "initramfs for kernel %s", krn.Ref())
	}
	spec.Name = "template"
	readOnly := filepath.Join(dir, kernel.ModulesFile) // has the size of an image
	machine := machineOf(store.VM{ID: "template", Spec: spec}, dir, ramdisk, readOnly, "", "")
	driver, shape, err := t.shapeOf(ctx, name, machine)
	if err != nil {
		return "", err
	}
	if shape == "" {
		return "", fault.New(fault.Invalid, "%s cannot save its machines: it has no templates", name).WithHint("banger doctor")
	}
	key = template.Key(shape)
	if err := t.store.Off(key); err != nil {
		return key, err
	}
	_, _, err = t.ensure(ctx, driver, machine, shape, krn.Version, report)
	return key, err
}

// warmBeside makes the template of a VM that is being created while its image is still on its way. That it cannot be made
// is for the start to find out and to note.
func (f *fleet) warmBeside(ctx context.Context, spec vm.Spec, krn Artifact, report progress.Func) {
	if !f.templates.on {
		return
	}
	if _, err := f.warmUp(ctx, spec, krn, report); err != nil && ctx.Err() == nil {
		f.log.InfoContext(ctx, "no template was made ahead of a start", "error", err)
	}
}
