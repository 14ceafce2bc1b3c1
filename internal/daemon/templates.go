package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/operation"
	"banger/internal/progress"
	"banger/internal/template"
	"banger/internal/vmdir"
)

// restoreDeadline is how long a start from a template may take until the agent has answered Configure. It takes half a
// second; a host that starts twenty VMs at once under software emulation needs ten.
const restoreDeadline = 25 * time.Second

// templates makes launches start from templates.
type templates struct {
	store   *template.Store
	ops     *operation.Registry[string]
	log     *slog.Logger
	drivers map[string]hypervisor.Driver
	limit   uint64 // bytes of all templates
	on      bool
	scratch string                // for sockets
	inUse   func(key string) bool // VMs that run were started from it
}

// stageTemplate is the progress stage of a template that is being made.
const stageTemplate = "template"

// choose has the launch begin from a template, which is made first if there is none. Whatever is wrong with templates is
// logged, noted in the launch and no reason to fail: the VM is booted then. The error is that of ctx.
func (t *templates) choose(ctx context.Context, launch *vmdir.Launch, kernel string, report progress.Func) error {
	driver, shape := t.shape(ctx, launch)
	if shape == "" {
		return context.Cause(ctx)
	}
	key := template.Key(shape)
	if err := t.store.Off(key); err != nil {
		t.log.InfoContext(ctx, "no template is used", "template", key, "reason", err)
		launch.TemplateFault = err.Error()
		return nil
	}
	found, damage, err := t.ensure(ctx, driver, launch.Machine, shape, kernel, report)
	if damage != nil {
		launch.TemplateFault = damage.Error() + "; it was made anew"
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		t.log.WarnContext(ctx, "there is no template", "template", key, "error", err)
		launch.TemplateFault = err.Error()
		return nil
	}
	t.store.Touch(key)
	launch.Template, launch.TemplateKey, launch.RestoreDeadline = &found.Saved, key, restoreDeadline
	return nil
}

// ensure returns the template of a shape and makes it if there is none, or one that cannot be used: damage says why.
func (t *templates) ensure(ctx context.Context, driver hypervisor.Driver, machine hypervisor.Spec, shape, kernel string, report progress.Func) (found template.Template, damage, err error) {
	key := template.Key(shape)
	found, err = t.store.Get(key)
	if fault.Is(err, fault.Conflict) {
		damage = err
		t.log.WarnContext(ctx, "a template cannot be used, it is made anew", "template", key, "error", err)
		report.Report(progress.Update{Stage: stageTemplate, Message: err.Error() + "; it is made anew"})
		if err = t.store.Drop(key); err == nil {
			err = fault.New(fault.NotFound, "template %s was dropped", key)
		}
	}
	if fault.Is(err, fault.NotFound) {
		found, err = t.make(ctx, driver, machine, shape, kernel, report)
	}
	return found, damage, err
}

// shape is the shape of the launch's machine, or "" when its driver has no templates.
func (t *templates) shape(ctx context.Context, launch *vmdir.Launch) (hypervisor.Driver, string) {
	driver, shape, err := t.shapeOf(ctx, launch.Driver, launch.Machine)
	if err != nil {
		t.log.WarnContext(ctx, "templates cannot be used", "vm", launch.VMID, "error", err)
		return nil, ""
	}
	return driver, shape
}

// shapeOf is the shape of a machine, or "" when templates are switched off or its driver has none.
func (t *templates) shapeOf(ctx context.Context, name string, machine hypervisor.Spec) (hypervisor.Driver, string, error) {
	driver := t.drivers[name]
	shaper, ok := driver.(hypervisor.Shaper)
	if !t.on || !ok || !driver.Features().Save {
		return nil, "", nil
	}
	shape, err := shaper.Shape(ctx, machine)
	return driver, shape, err
}

// make makes a template, or waits for somebody else who makes the same one.
func (t *templates) make(ctx context.Context, driver hypervisor.Driver, machine hypervisor.Spec, shape, kernel string, report progress.Func) (template.Template, error) {
	key := template.Key(shape)
	spec := operation.Spec{Kind: "template.make", Target: key, Key: "template/" + key}
	_, err := t.ops.Share(ctx, spec, report, func(ctx context.Context, report progress.Func) (string, error) {
		report(progress.Update{Stage: stageTemplate, Message: "booting once, for all starts to come"})
		if err := os.MkdirAll(t.scratch, 0o700); err != nil {
			return "", err
		}
		_, err := t.store.Make(ctx, template.Request{
			Driver: driver, Spec: machine, Shape: shape, Kernel: kernel, Scratch: t.scratch,
		})
		if err != nil {
			return "", errors.Join(err, t.failed(ctx, key, err))
		}
		report(progress.Update{Stage: stageTemplate, Message: "template is ready", Done: 1, Total: 1})
		t.evict(ctx, key)
		return key, nil
	})
	if err != nil {
		return template.Template{}, err
	}
	return t.store.Get(key)
}

// failed counts a failure to make a template, once for all who wait for it. That nobody wants it any more, or that the
// disk is full, says nothing about the shape.
func (t *templates) failed(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil || fault.Is(err, fault.Exhausted) {
		return nil
	}
	return t.store.Fail(key, err)
}

// evict keeps the templates within their limit, but for those in use and the one that was made just now, which is about
// to be used.
func (t *templates) evict(ctx context.Context, made string) {
	gone, err := t.store.Evict(t.limit, func(key string) bool { return key == made || t.inUse(key) })
	if err != nil {
		t.log.WarnContext(ctx, "cannot remove templates", "error", err)
	}
	for _, g := range gone {
		t.log.InfoContext(ctx, "template removed to make room", "template", g.Key, "bytes", g.Used)
	}
}

// used takes in what a supervisor says of a start from a template.
func (t *templates) used(ctx context.Context, key string, from bool, failure string) {
	var err error
	switch {
	case key == "":
		return
	case from:
		err = t.store.Forget(key)
	case failure != "":
		if _, err := t.store.Get(key); fault.Is(err, fault.NotFound) {
			return // another VM has told of it: one template that is bad counts once
		}
		t.log.WarnContext(ctx, "a vm did not start from its template, which is dropped", "template", key, "error", failure)
		err = t.store.Fail(key, errors.New(failure))
	}
	if err != nil {
		t.log.ErrorContext(ctx, "template", "template", key, "error", err)
	}
}
