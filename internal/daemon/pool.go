package daemon

import (
	"cmp"
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/hostmem"
	"banger/internal/store"
	"banger/internal/undo"
	"banger/internal/vm"
	"banger/internal/vmclient"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// pool keeps VMs that run already and have no name: a create that finds one of its kind only has to tell its guest who it
// is. Under software emulation most of a start is the translation of code that runs for the first time, and a guest of the
// pool has that behind it.
//
// A member is one of the daemon's own VMs (vm.PurposePool), with an id, a directory, a machine-id, a hardware address and
// random numbers that it keeps. It becomes a user's by one change of its row, after its guest has got its name: whoever
// dies before that leaves a VM of the daemon's own, which the next daemon removes. There are members of two kinds at most:
// what the defaults say and what was asked for last.
//
// Members are made one at a time, when no VM has been started for a while, and given back when memory becomes short.
type pool struct {
	// Fixed after newPool.
	vms  *vmService
	size int // members of each kind
	free func() (hostmem.Free, hostmem.Pressure, error)
	poke chan struct{} // room for one: something has changed

	mu      sync.Mutex // guards the fields below
	members []*member
	recent  *kind
	closed  bool
}

// kind is what all that a member needs follows from.
type kind struct {
	Driver, Image, Kernel string // digests
	CPUs                  int
	Memory, Disk          uint64
	User                  string // some directories are made for it
}

// member is a VM that waits to be taken.
type member struct {
	kind kind
	id   vm.ID
}

const (
	poolPeriod    = 10 * time.Second // between two looks when nothing happens
	poolTries     = 2                // members that do not answer, before a create makes its own VM
	identifyLimit = 3 * time.Second  // for a guest to take its name
	rehearsals    = 2                // of what a create does with it; the first one translates most
	rehearseLimit = 30 * time.Second
)

func newPool(vms *vmService, size int) *pool {
	host := hostmem.Host{}
	return &pool{
		vms: vms, size: size, poke: make(chan struct{}, 1),
		free: func() (hostmem.Free, hostmem.Pressure, error) {
			free, err := host.Available()
			return free, host.Pressure(), err
		},
	}
}

// wake has the pool look at itself soon.
func (p *pool) wake() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// counts are the members that wait, and how many there should be.
func (p *pool) counts() (ready, wanted int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.members), p.size
}

// run keeps the pool filled until ctx ends, and then empties it.
func (p *pool) run(ctx context.Context) {
	if p.size == 0 {
		return
	}
	defer p.drain()
	for {
		p.tend(ctx)
		select {
		case <-p.poke:
		case <-time.After(poolPeriod):
		case <-ctx.Done():
			return
		}
	}
}

// tend drops members that are of no use any more and makes those that are missing.
func (p *pool) tend(ctx context.Context) {
	f := p.vms.fleet
	for ctx.Err() == nil {
		wanted := p.kinds(ctx)
		p.dropUnless(ctx, func(m *member) bool {
			v, err := p.vms.store.VM(ctx, m.id)
			return err == nil && v.State == vm.Running && slices.Contains(wanted, m.kind)
		})
		next, ok := p.missing(wanted)
		if !ok {
			return
		}
		if p.short(next.Memory) {
			p.dropUnless(ctx, func(*member) bool { return false })
			return
		}
		if !f.lull(ctx) {
			return
		}
		m, err := p.make(ctx, next)
		if err != nil {
			if ctx.Err() == nil {
				f.log.WarnContext(ctx, "no vm for the pool", "error", err)
			}
			return
		}
		p.mu.Lock()
		p.members = append(p.members, m)
		p.mu.Unlock()
	}
}

// short reports whether the host has no memory for another member.
func (p *pool) short(memory uint64) bool {
	free, pressure, err := p.free()
	return err == nil && (free.Bytes < 2*memory || pressure.High())
}

// kinds are the kinds that there should be members of: what was asked for last, and what the defaults say.
func (p *pool) kinds(ctx context.Context) []kind {
	p.mu.Lock()
	recent := p.recent
	p.mu.Unlock()
	var all []kind
	if recent != nil {
		all = append(all, *recent)
	}
	d := p.vms.cfg.Settings.Defaults
	spec := vm.Spec{Image: d.Image, CPUs: d.CPUs, Memory: d.Memory, Disk: d.Disk}
	if k, _, ok := p.kindOf(ctx, &spec); ok && !slices.Contains(all, k) {
		all = append(all, k)
	}
	return all
}

// local are an image and a kernel that are here.
type local struct{ img, krn Artifact }

// kindOf is the kind of a VM whose image and kernel are here.
func (p *pool) kindOf(ctx context.Context, spec *vm.Spec) (kind, local, bool) {
	s := p.vms
	img, here, err := s.images.Local(ctx, spec.Image)
	if err != nil || !here {
		return kind{}, local{}, false
	}
	name := cmp.Or(spec.Kernel, img.Kernel)
	if name == "" {
		name = standardKernel(ctx, s.kernels)
	}
	krn, here, err := s.kernels.Local(ctx, name)
	if err != nil || !here || fits(img, krn) != nil {
		return kind{}, local{}, false
	}
	k := kind{
		Driver: s.cfg.Settings.VMM.Driver, Image: img.Digest, Kernel: krn.Digest, CPUs: spec.CPUs, Memory: spec.Memory,
		Disk: spec.Disk, User: spec.User,
	}
	return k, local{img, krn}, true
}

// missing is a kind that there are too few members of.
func (p *pool) missing(wanted []kind) (kind, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range wanted {
		n := 0
		for _, m := range p.members {
			if m.kind == k {
				n++
			}
		}
		if n < p.size && !p.closed {
			return k, true
		}
	}
	return kind{}, false
}

// dropUnless removes members that are not to be kept.
func (p *pool) dropUnless(ctx context.Context, keep func(*member) bool) {
	p.mu.Lock()
	all := slices.Clone(p.members)
	p.mu.Unlock()
	for _, m := range all {
		if !keep(m) && p.pull(m) {
			p.drop(ctx, m)
		}
	}
}

// pull takes a member out of the pool, unless somebody else has.
func (p *pool) pull(m *member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.members)
	p.members = slices.DeleteFunc(p.members, func(have *member) bool { return have == m })
	return len(p.members) < n
}

// drop removes the VM of a member that nobody will take.
func (p *pool) drop(ctx context.Context, m *member) {
	f := p.vms.fleet
	if err := f.remove(context.WithoutCancel(ctx), m.id, true); err != nil {
		f.log.ErrorContext(ctx, "a vm of the pool is left behind", "vm", m.id, "error", err)
	}
	f.setOwn(m.id, false)
}

// release drops the members that an image or a kernel is kept by which somebody wants to remove.
func (p *pool) release(ctx context.Context, lib *library.Library, ref string) {
	if p.size == 0 {
		return
	}
	found, here, err := lib.Local(ctx, ref)
	if err != nil || !here {
		return
	}
	p.mu.Lock()
	if r := p.recent; r != nil && (r.Image == found.Digest || r.Kernel == found.Digest) {
		p.recent = nil // there are to be no more of it
	}
	p.mu.Unlock()
	p.dropUnless(ctx, func(m *member) bool { return m.kind.Image != found.Digest && m.kind.Kernel != found.Digest })
}

// drain empties the pool for good.
func (p *pool) drain() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.dropUnless(context.Background(), func(*member) bool { return false })
}

// make makes a member and lets its guest do once what a create will have it do.
func (p *pool) make(ctx context.Context, k kind) (_ *member, err error) {
	s, f := p.vms, p.vms.fleet
	v, err := p.row(ctx, k)
	if err != nil {
		return nil, err
	}
	f.setOwn(v.ID, true)
	var u undo.Stack
	defer func() {
		if undoErr := u.Run(ctx); undoErr != nil {
			s.log.ErrorContext(ctx, "a vm of the pool is left behind", "vm", v.ID, "error", undoErr)
		}
	}()
	m := &member{kind: k, id: v.ID}
	u.Add("remove the vm", func(ctx context.Context) error { p.drop(ctx, m); return nil })
	if err := p.start(ctx, v); err != nil {
		return nil, err
	}
	for range rehearsals {
		if err := p.rehearse(ctx, v); err != nil {
			return nil, err
		}
	}
	if err := s.cfg.step(ctx, StepPoolReady); err != nil {
		return nil, err
	}
	u.Disarm()
	return m, nil
}

// row is the row of a new member.
func (p *pool) row(ctx context.Context, k kind) (store.VM, error) {
	s := p.vms
	img, err := s.cfg.Images.Load(s.cfg.Paths.Image(k.Image))
	if err != nil {
		return store.VM{}, err
	}
	krn, err := s.cfg.Kernels.Load(s.cfg.Paths.Kernel(k.Kernel))
	if err != nil {
		return store.VM{}, err
	}
	id := vm.NewID()
	return store.VM{
		ID: id, MachineID: machineID(), Driver: k.Driver, ImageDigest: k.Image, KernelDigest: k.Kernel, KernelVersion: krn.Version,
		State: vm.Created, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
		Spec: vm.Spec{
			Name: vm.Name(string(vm.PurposePool) + "-" + string(id)), Image: cmp.Or(img.Name, k.Image), Kernel: krn.Name,
			CPUs: k.CPUs, Memory: k.Memory, Disk: k.Disk, User: k.User, Purpose: vm.PurposePool,
		},
	}, nil
}

// start makes a member's row and directory and starts it. It counts as no start that the pool waits for.
func (p *pool) start(ctx context.Context, v store.VM) error {
	s := p.vms
	if prepared := s.fleet.preparedOf(ctx, v); prepared != nil {
		if err := s.fleet.prepare(ctx, prepared, nil); err != nil && ctx.Err() == nil { // it starts from another template then
			s.log.InfoContext(ctx, "no prepared template for the pool", "error", err)
		}
	}
	unlock, err := s.fleet.lock(ctx, v.ID, patient)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.store.InsertVM(ctx, v); err != nil {
		return err
	}
	if v, err = s.store.VM(ctx, v.ID); err != nil { // with its address
		return err
	}
	var opt startOptions
	opt.from, opt.damage = s.fleet.findPrepared(ctx, v)
	if err := s.build(ctx, v, opt.from); err != nil {
		return err
	}
	return s.fleet.start(ctx, v, opt)
}

// rehearse tells the guest its present name and runs a program in it. An image need not have that.
func (p *pool) rehearse(ctx context.Context, v store.VM) error {
	f := p.vms.fleet
	ctx, cancel := context.WithTimeout(ctx, rehearseLimit)
	defer cancel()
	r := f.runOf(v.ID)
	if r == nil {
		return fault.New(fault.Unavailable, "vm %s has ended", v.ID)
	}
	if err := r.supervisor.identify(ctx, &bangerv1.SupervisorIdentifyRequest{Name: string(v.Name())}); err != nil {
		return err
	}
	client := vmclient.New(f.cfg.Paths.SupervisorSocket(string(v.ID)))
	defer client.Close()
	_, err := client.Exec(ctx, vmclient.Exec{
		Start: &bangerv1.ExecStart{Argv: []string{"true"}}, Stdout: io.Discard, Stderr: io.Discard,
	})
	if err != nil && ctx.Err() == nil && !fault.Is(err, fault.Unavailable) {
		return nil // there is no such program
	}
	return err
}

// take turns a member into the VM that somebody orders. ok is false when there is none; then nothing has happened.
func (p *pool) take(ctx context.Context, o order) (id vm.ID, ok bool, err error) {
	if p.size == 0 || !o.start || o.cold {
		return "", false, nil
	}
	k, found, here := p.kindOf(ctx, &o.spec)
	if !here {
		return "", false, nil
	}
	p.mu.Lock()
	p.recent = &k
	p.mu.Unlock()
	defer p.wake()
	for range poolTries {
		m := p.pop(k)
		if m == nil {
			break
		}
		err := p.give(ctx, m, o, found)
		if err == nil {
			return m.id, true, nil
		}
		p.vms.log.WarnContext(ctx, "a vm of the pool is dropped", "vm", m.id, "error", err)
		p.drop(ctx, m)
		if ctx.Err() != nil {
			return "", false, context.Cause(ctx)
		}
		if fault.Is(err, fault.Exists) {
			return "", false, err
		}
	}
	return "", false, nil
}

// pop takes the oldest member of a kind.
func (p *pool) pop(k kind) *member {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.members, func(m *member) bool { return m.kind == k })
	if i < 0 {
		return nil
	}
	m := p.members[i]
	p.members = slices.Delete(p.members, i, i+1)
	return m
}

// give makes a member the VM of an order: guest, record, launch, and last the row.
func (p *pool) give(ctx context.Context, m *member, o order, found local) error {
	s, f := p.vms, p.vms.fleet
	unlock, err := f.lock(ctx, m.id, patient)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := s.store.VM(ctx, m.id)
	if err != nil {
		return err
	}
	r := f.runOf(m.id)
	if r == nil || v.State != vm.Running {
		return fault.New(fault.Unavailable, "it has ended: %s", v.Reason)
	}
	v.Spec = o.spec
	v.Spec.Image, v.Spec.Kernel = found.img.Ref(), found.krn.Ref()
	v.CreatedAt = time.Now().UTC().Truncate(time.Millisecond)
	if !o.named {
		if err := s.store.CheckName(ctx, v.Name()); fault.Is(err, fault.Exists) {
			v.Spec.Name = s.generateName(ctx)
		}
	}
	launch, err := f.launch(v)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, identifyLimit)
	defer cancel()
	err = r.supervisor.identify(bounded, &bangerv1.SupervisorIdentifyRequest{
		Name: string(v.Name()), Env: launch.Guest.Env, User: launch.Guest.User, Workdir: launch.Guest.Workdir, Final: true,
	})
	if err != nil {
		return err
	}
	if err := s.cfg.step(ctx, StepPoolNamed); err != nil {
		return err
	}
	if err := p.record(v, launch); err != nil {
		return withClass(err)
	}
	if err := s.cfg.step(ctx, StepPoolRecord); err != nil {
		return err
	}
	s.createMu.Lock()
	_, err = s.store.ClaimVM(ctx, v)
	s.createMu.Unlock()
	if err != nil {
		return err
	}
	f.setOwn(m.id, false)
	return nil
}

// record writes down in the VM's directory what it is now, and with what it was started: not the same, but it has it now.
func (p *pool) record(v store.VM, launch vmdir.Launch) error {
	dir := p.vms.fleet.dir(v.ID)
	now, err := dir.ReadLaunch()
	if err != nil {
		return err
	}
	now.Name, now.Guest, now.Pool = launch.Name, launch.Guest, false
	if err := dir.WriteLaunch(now); err != nil {
		return err
	}
	return dir.WriteRecord(recordOf(v))
}
