package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/progress"
	"banger/internal/store"
	"banger/internal/undo"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// order is a VM to be made, with every default filled in and checked as far as it can be without the host.
type order struct {
	spec  vm.Spec
	named bool // by its creator; else the name was generated and may change
	start bool
	cold  bool
}

// Create implements the RPC. What is wrong with the request itself is said at once; the rest is the operation's.
func (s *vmService) Create(ctx context.Context, req *connect.Request[bangerv1.CreateVMRequest]) (*connect.Response[bangerv1.CreateVMResponse], error) {
	o, err := s.order(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	spec := operation.Spec{Kind: "vm.create", Target: string(o.spec.Name)}
	id, err := s.ops.Begin(spec, func(ctx context.Context, report progress.Func) (string, error) {
		return s.create(ctx, o, report)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.CreateVMResponse{OperationId: id}), nil
}

// order reads and checks a request.
func (s *vmService) order(ctx context.Context, req *bangerv1.CreateVMRequest) (order, error) {
	in, defaults := req.GetSpec(), s.cfg.Settings.Defaults
	o := order{start: req.GetStart(), cold: req.GetCold(), named: in.GetName() != "", spec: vm.Spec{
		Image: orElse(in.GetImage(), defaults.Image), Kernel: in.GetKernel(), CPUs: defaults.CPUs,
		Memory: defaults.Memory, Disk: defaults.Disk, Remove: in.GetRemoveOnExit(), Env: slices.Clone(in.GetEnv()),
		User: in.GetUser(), Workdir: in.GetWorkdir(), Labels: maps.Clone(in.GetLabels()), Description: in.GetDescription(),
		Restart: vm.RestartPolicy(in.GetRestart()), AutoStop: defaults.AutoStop, NoFork: in.GetNoFork(),
	}}
	switch ms := in.GetAutoStopMs(); {
	case ms < 0: // never, although the configuration says otherwise
		o.spec.AutoStop = 0
	case ms > 0:
		o.spec.AutoStop = milliseconds(ms)
	}
	if n := in.GetCpus(); n > 0 {
		o.spec.CPUs = int(min(n, math.MaxInt32))
	}
	if n := in.GetMemoryBytes(); n > 0 {
		o.spec.Memory = n
	}
	if n := in.GetDiskBytes(); n > 0 {
		o.spec.Disk = n
	}
	if o.named {
		parsed, err := vm.ParseName(in.GetName())
		if err != nil {
			return order{}, err
		}
		o.spec.Name = parsed
	} else {
		o.spec.Name = s.generateName(ctx)
	}
	return o, s.check(ctx, &o.spec)
}

// milliseconds is a duration of the wire. What is too long for a time.Duration is as long as one can be.
func milliseconds(ms int64) time.Duration {
	return time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
}

// check finds what would make the create fail later, before anything is fetched for it.
func (s *vmService) check(ctx context.Context, spec *vm.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if err := s.checkCPUs(s.cfg.Settings.VMM.Driver, spec.CPUs, "banger vm run --cpus %d"); err != nil {
		return err
	}
	if err := s.images.Check(ctx, spec.Image); err != nil {
		return err
	}
	if spec.Kernel != "" {
		if err := s.kernels.Check(ctx, spec.Kernel); err != nil {
			return err
		}
	}
	return s.store.CheckName(ctx, spec.Name)
}

// checkCPUs refuses more CPUs than the driver allows. The hint is a format with one number.
func (s *vmService) checkCPUs(driver string, cpus int, hint string) error {
	d := s.cfg.Drivers[driver]
	if d == nil { // of a VM that was made with another banger; a start says so
		return nil
	}
	if most := d.Features().MaxCPUs; most > 0 && cpus > most {
		return fault.New(fault.Invalid, "%d cpus are more than the %d that %s allows", cpus, most, d.Name()).WithHint(hint, most)
	}
	return nil
}

// generateName returns a name that no VM has.
func (s *vmService) generateName(ctx context.Context) vm.Name {
	return vm.GenerateName(func(candidate string) bool {
		return fault.Is(s.store.CheckName(ctx, vm.Name(candidate)), fault.Exists)
	})
}

// create makes a VM: fetch what it needs, reserve its name, make its directory, start it. Whatever fails or is
// cancelled, nothing of the VM is left; images and kernels that were fetched stay.
func (s *vmService) create(ctx context.Context, o order, report progress.Func) (_ string, err error) {
	if id, ok, err := s.pool.take(ctx, o); ok || err != nil {
		return string(id), err
	}
	driver := s.cfg.Drivers[s.cfg.Settings.VMM.Driver]
	if _, err := driver.Probe(ctx); err != nil {
		return "", err
	}
	id := vm.NewID()
	unlock, err := s.fleet.lock(ctx, id, patient)
	if err != nil {
		return "", err
	}
	defer unlock()
	var u undo.Stack
	defer func() {
		if undoErr := u.Run(ctx); undoErr != nil {
			s.log.ErrorContext(ctx, "a create that failed left something behind", "vm", id, "error", undoErr)
		}
	}()
	// First, because a row may have been inserted although the answer is an error.
	u.Add("remove the vm", func(ctx context.Context) error { return s.fleet.destroy(ctx, id) })
	v, err := s.reserve(ctx, id, o, report)
	if err != nil {
		return "", err
	}
	report(progress.Update{Stage: "disk", Message: "making the disk"})
	opt := startOptions{cold: o.cold, report: report}
	if o.start && !o.cold {
		opt.from, opt.damage = s.fleet.findPrepared(ctx, v)
	}
	if err := s.build(ctx, v, opt.from); err != nil {
		return "", fault.Context(err, "create vm %s", v.Name())
	}
	if o.start {
		report(progress.Update{Stage: "boot", Message: "starting " + string(v.Name())})
		if err := s.fleet.start(ctx, v, opt); err != nil {
			return "", s.suspectKernel(v, withoutItsLog(err))
		}
		if opt.from == nil && !o.cold {
			s.fleet.prepareLater(ctx, v)
		}
	}
	u.Disarm()
	return string(id), nil
}

// reserve fetches what the VM needs and inserts its row. Between the two an image may be replaced by a newer one; then
// that one is taken.
func (s *vmService) reserve(ctx context.Context, id vm.ID, o order, report progress.Func) (store.VM, error) {
	for try := 1; ; try++ {
		img, krn, err := s.resolve(ctx, &o.spec, o.start && !o.cold, report)
		if err != nil {
			return store.VM{}, err
		}
		if err := s.cfg.step(ctx, StepCreateFetched); err != nil {
			return store.VM{}, err
		}
		spec := o.spec
		spec.Image, spec.Kernel = img.Ref(), krn.Ref()
		v := store.VM{
			ID: id, Spec: spec, MachineID: machineID(), Driver: s.cfg.Settings.VMM.Driver, ImageDigest: img.Digest,
			KernelDigest: krn.Digest, KernelVersion: krn.Version, State: vm.Created, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
		}
		err = s.insert(ctx, &v, o.named)
		if !fault.Is(err, fault.Unavailable) || try == 3 {
			return v, err
		}
	}
}

// resolve returns the image and the kernel, pulling what is missing, both at once. With warm the template is made, too,
// while the image is on its way.
func (s *vmService) resolve(ctx context.Context, spec *vm.Spec, warm bool, report progress.Func) (img, krn Artifact, err error) {
	kernelName, err := s.kernelOf(ctx, spec)
	if err != nil {
		return img, krn, err
	}
	if warm {
		_, here, err := s.images.Local(ctx, spec.Image)
		if err != nil {
			return img, krn, err
		}
		warm = !here
	}
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		krn, err = s.kernels.Ensure(ctx, library.Request{Reference: kernelName}, report)
		if err == nil && warm {
			s.fleet.warmBeside(ctx, *spec, krn, report)
		}
		return err
	})
	both.Go(func() (err error) {
		img, err = s.images.Ensure(ctx, library.Request{Reference: spec.Image}, report)
		return err
	})
	if err = both.Wait(); err != nil {
		return img, krn, err
	}
	return img, krn, fits(img, krn)
}

// kernelOf is the name of the kernel of a VM: its own, or the one of its image, which need not be here yet.
func (s *vmService) kernelOf(ctx context.Context, spec *vm.Spec) (string, error) {
	if spec.Kernel != "" {
		return spec.Kernel, nil
	}
	img, here, err := s.images.Local(ctx, spec.Image)
	if err != nil {
		return "", err
	}
	if here {
		return orElse(img.Kernel, standardKernel(ctx, s.kernels)), nil
	}
	item, err := s.images.Source().Find(ctx, spec.Image)
	return orElse(item.Kernel, standardKernel(ctx, s.kernels)), err
}

// fits refuses what is for another machine than this one.
func fits(img, krn Artifact) error {
	for kind, a := range map[string]Artifact{"image": img, "kernel": krn} {
		if a.Arch != "" && a.Arch != runtime.GOARCH {
			return fault.New(fault.Invalid, "%s %s is for %s, this host is %s", kind, a.Ref(), a.Arch, runtime.GOARCH).
				WithHint("banger %s pull --force %s", kind, a.Ref())
		}
	}
	return nil
}

// insert reserves the name. It is all that createMu is held for.
func (s *vmService) insert(ctx context.Context, v *store.VM, named bool) error {
	s.createMu.Lock()
	defer s.createMu.Unlock()
	for try := 1; ; try++ {
		if !named { // somebody may have taken it since
			if err := s.store.CheckName(ctx, v.Name()); fault.Is(err, fault.Exists) {
				v.Spec.Name = s.generateName(ctx)
			}
		}
		err := s.store.InsertVM(ctx, *v)
		if err == nil {
			*v, err = s.store.VM(ctx, v.ID) // with its address
		}
		if named || !fault.Is(err, fault.Exists) || try == 3 { // a rename does not take createMu
			return err
		}
	}
}

// build makes the VM's directory. Its record is the last to be written: a directory without one is half made.
func (s *vmService) build(ctx context.Context, v store.VM, from *prepared) error {
	if err := s.cfg.step(ctx, StepCreateRow); err != nil {
		return err
	}
	dir := s.fleet.dir(v.ID)
	for _, part := range []struct {
		make func() error
		step Step
	}{
		{func() error { return os.Mkdir(string(dir), 0o700) }, StepCreateDir},
		{func() error { return s.fleet.newDisk(ctx, v, from) }, StepCreateDisk},
		{func() error { return dir.WriteRecord(recordOf(v)) }, StepCreateRecord},
		{func() error { return s.store.MarkMade(ctx, v.ID) }, StepCreateMade},
	} {
		if err := part.make(); err != nil {
			return withClass(err)
		}
		if err := s.cfg.step(ctx, part.step); err != nil {
			return err
		}
	}
	return nil
}

// withClass gives an error of the file system its class. Faults have one.
func withClass(err error) error {
	if class := classOf(err); class != fault.ClassOf(err) && class != fault.Internal {
		return fault.Wrap(class, err, "the host's file system").WithHint("banger doctor")
	}
	return err
}

// withoutItsLog replaces a hint at the log of a VM that is not there any more.
func withoutItsLog(err error) error {
	if !strings.HasPrefix(fault.HintOf(err), "banger vm ") {
		return err
	}
	return fault.Wrap(fault.ClassOf(err), err, "the vm was not created").WithHint("banger doctor")
}

// suspectKernel gives the error of a VM that did not come up a hint at its kernel, if that lacks something.
func (s *vmService) suspectKernel(v store.VM, err error) error {
	class := fault.ClassOf(err)
	if class != fault.Unavailable && class != fault.Timeout {
		return err
	}
	k, loadErr := s.kernels.Source().Load(s.kernels.Dir(v.KernelDigest))
	f, ok := errors.AsType[*fault.Error](err)
	if loadErr != nil || len(k.Missing) == 0 || !ok {
		return err
	}
	own := *f // others may wait for the same start
	return own.WithHint("banger kernel show %s   # it lacks something, which may be why", v.Spec.Kernel)
}

// machineID is a new /etc/machine-id: machine-id(5) wants a random version 4 UUID without hyphens.
func machineID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return hex.EncodeToString(b[:])
}
