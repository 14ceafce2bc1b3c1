package daemon

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/progress"
	"banger/internal/template"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// templateService is the wire's TemplateService.
type templateService struct {
	parts *parts
}

func (s *templateService) store() *template.Store { return s.parts.fleet.templates.store }

// List implements the RPC.
func (s *templateService) List(ctx context.Context, _ *connect.Request[bangerv1.ListTemplatesRequest]) (*connect.Response[bangerv1.ListTemplatesResponse], error) {
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	t := s.parts.fleet.templates
	return connect.NewResponse(&bangerv1.ListTemplatesResponse{Templates: all, LimitBytes: t.limit, Off: !t.on}), nil
}

// list returns the templates, the one that was used last first, and then the shapes of which there are only failures.
func (s *templateService) list(ctx context.Context) ([]*bangerv1.Template, error) {
	found, err := s.store().List()
	if err != nil {
		return nil, err
	}
	users, err := s.parts.fleet.templateUsers(ctx)
	if err != nil {
		return nil, err
	}
	var all []*bangerv1.Template
	for _, t := range found {
		out := &bangerv1.Template{
			Key: t.Key, Vmm: t.Driver, Cpus: int32(t.CPUs), MemoryBytes: t.Memory, Kernel: t.Kernel, UsedBytes: t.Used,
			CreatedAtMs: millis(t.Created), LastUsedMs: millis(t.Last), UsedBy: users[t.Key],
			Image: t.Image,
		}
		if _, err := s.store().Get(t.Key); err != nil {
			out.Problem = strings.TrimPrefix(err.Error(), "template "+t.Key+": ")
		}
		all = append(all, out)
	}
	for _, f := range s.store().Failures() {
		i := slices.IndexFunc(all, func(t *bangerv1.Template) bool { return t.GetKey() == f.Key })
		if i < 0 {
			i = len(all)
			all = append(all, &bangerv1.Template{Key: f.Key})
		}
		all[i].Failures, all[i].LastFailure, all[i].LastFailureMs = int32(f.Count), f.Last, millis(f.At)
		all[i].Off = s.store().Off(f.Key) != nil
	}
	return all, nil
}

// templateUsers are the names of the VMs that run, by the key of the template that they were started from.
func (f *fleet) templateUsers(ctx context.Context) (map[string][]string, error) {
	all, err := f.store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, v := range all {
		if r := f.runOf(v.ID); r != nil && !v.Hidden() && r.from().template != "" {
			key := r.from().template
			users[key] = append(users[key], string(v.Name()))
		}
	}
	return users, nil
}

// find returns the template of that key, or of the only one that begins so.
func (s *templateService) find(ctx context.Context, ref string) (*bangerv1.Template, error) {
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(all, func(t *bangerv1.Template) bool { return t.GetKey() == ref }); i >= 0 {
		return all[i], nil
	}
	all = slices.DeleteFunc(all, func(t *bangerv1.Template) bool { return ref == "" || !strings.HasPrefix(t.GetKey(), ref) })
	switch len(all) {
	case 0:
		return nil, fault.New(fault.NotFound, "no template has the key %q", ref).WithHint("banger template list")
	case 1:
		return all[0], nil
	}
	return nil, fault.New(fault.Conflict, "%d templates have keys that begin with %q", len(all), ref).WithHint("banger template list")
}

// Remove implements the RPC.
func (s *templateService) Remove(ctx context.Context, req *connect.Request[bangerv1.RemoveTemplateRequest]) (*connect.Response[bangerv1.RemoveTemplateResponse], error) {
	t, err := s.find(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	if err := s.remove(t.GetKey()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.RemoveTemplateResponse{Key: t.GetKey(), FreedBytes: t.GetUsedBytes()}), nil
}

func (s *templateService) remove(key string) error {
	if err := s.store().Drop(key); err != nil {
		return err
	}
	return s.store().Forget(key)
}

// Prune implements the RPC.
func (s *templateService) Prune(ctx context.Context, req *connect.Request[bangerv1.PruneTemplatesRequest]) (*connect.Response[bangerv1.PruneTemplatesResponse], error) {
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	out := &bangerv1.PruneTemplatesResponse{}
	for _, t := range all {
		if t.GetUsedBytes() == 0 && t.GetVmm() == "" && t.GetProblem() == "" { // what is noted of failures stays: rm forgets it
			continue
		}
		if !req.Msg.GetAll() && s.parts.fleet.usesTemplate(t.GetKey()) {
			continue
		}
		if !req.Msg.GetDryRun() {
			if err := s.store().Drop(t.GetKey()); err != nil {
				return nil, err
			}
		}
		out.Pruned = append(out.Pruned, &bangerv1.Pruned{Kind: "template", Name: t.GetKey(), Bytes: t.GetUsedBytes()})
		out.FreedBytes += t.GetUsedBytes()
	}
	return connect.NewResponse(out), nil
}

// Warm implements the RPC.
func (s *templateService) Warm(ctx context.Context, req *connect.Request[bangerv1.WarmTemplateRequest]) (*connect.Response[bangerv1.WarmTemplateResponse], error) {
	spec, err := s.warmSpec(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	id, err := s.parts.ops.Begin(operation.Spec{Kind: "template.warm", Target: spec.Kernel}, func(ctx context.Context, report progress.Func) (string, error) {
		krn, err := s.parts.kernels.Ensure(ctx, library.Request{Reference: spec.Kernel}, report)
		if err != nil {
			return "", err
		}
		return s.parts.fleet.warmUp(ctx, spec, krn, report)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.WarmTemplateResponse{OperationId: id}), nil
}

// warmSpec is a VM as the request means it, checked.
func (s *templateService) warmSpec(ctx context.Context, req *bangerv1.WarmTemplateRequest) (vm.Spec, error) {
	cfg := s.parts.daemon.cfg
	defaults := cfg.Settings.Defaults
	spec := vm.Spec{Name: "template", Image: defaults.Image, CPUs: defaults.CPUs, Memory: defaults.Memory, Disk: defaults.Disk}
	if n := req.GetCpus(); n > 0 {
		spec.CPUs = int(min(n, 1<<30))
	}
	if n := req.GetMemoryBytes(); n > 0 {
		spec.Memory = n
	}
	spec.Kernel = req.GetKernel()
	if err := spec.Validate(); err != nil {
		return spec, err
	}
	vms := &vmService{cfg: cfg, images: s.parts.images, kernels: s.parts.kernels}
	if err := vms.checkCPUs(cfg.Settings.VMM.Driver, spec.CPUs, "banger template warm --cpus %d"); err != nil {
		return spec, err
	}
	kernel, err := vms.kernelOf(ctx, &spec)
	if err != nil {
		return spec, err
	}
	spec.Kernel = kernel
	return spec, s.parts.kernels.Check(ctx, kernel)
}
