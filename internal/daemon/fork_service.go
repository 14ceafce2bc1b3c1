package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/progress"
	"banger/internal/store"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// mostClones is how many VMs one fork makes at most.
const mostClones = 64

// forkOrder is a fork, checked as far as it can be without the source's lock.
type forkOrder struct {
	source   vm.ID
	count    int
	names    []vm.Name // none: they are generated
	diskOnly bool
	start    bool
	remove   bool
}

// Fork implements the RPC. What is wrong with the request itself is said at once; the rest is the operation's.
func (s *vmService) Fork(ctx context.Context, req *connect.Request[bangerv1.ForkVMRequest]) (*connect.Response[bangerv1.ForkVMResponse], error) {
	v, err := s.store.FindVM(ctx, req.Msg.GetRef())
	if err != nil {
		return nil, err
	}
	o := forkOrder{
		source: v.ID, count: int(min(req.Msg.GetCount(), 1<<16)), diskOnly: req.Msg.GetDiskOnly(), start: !req.Msg.GetNoStart(),
		remove: req.Msg.GetRemoveOnExit(),
	}
	if err := o.name(req.Msg.GetNames(), v); err != nil {
		return nil, err
	}
	for _, name := range o.names {
		err := s.store.CheckName(ctx, name)
		if fault.Is(err, fault.Exists) { // whose hint is to remove that VM, which may be this one
			return nil, fault.Wrap(fault.Exists, err, "fork vm %s", v.Name()).
				WithHint("banger vm fork -n %d %s   # under names that are free", o.count, v.Name())
		}
		if err != nil {
			return nil, err
		}
	}
	if err := forkable(v, o.diskOnly); err != nil {
		return nil, err
	}
	id, err := s.ops.Begin(operation.Spec{Kind: "vm.fork", Target: string(v.Name())}, func(ctx context.Context, report progress.Func) (string, error) {
		return s.fork(ctx, o, report)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bangerv1.ForkVMResponse{OperationId: id}), nil
}

// name checks how many clones there are to be, and their names.
func (o *forkOrder) name(names []string, v store.VM) error {
	if o.count == 0 {
		o.count = max(1, len(names))
	}
	switch {
	case o.count > mostClones:
		return fault.New(fault.Invalid, "%d clones are more than the %d that one fork makes", o.count, mostClones).
			WithHint("banger vm fork -n %d %s", mostClones, v.Name())
	case len(names) > 0 && len(names) != o.count:
		return fault.New(fault.Invalid, "%d clones are asked for and %d names are given", o.count, len(names)).
			WithHint("banger vm fork --names %s %s", strings.Join(names, ","), v.Name())
	}
	for _, text := range names {
		name, err := vm.ParseName(text)
		if err != nil {
			return err
		}
		if slices.Contains(o.names, name) {
			return fault.New(fault.Invalid, "two clones are to be called %s", name).WithHint("banger vm fork -n %d %s", o.count, v.Name())
		}
		o.names = append(o.names, name)
	}
	return nil
}

// forkable refuses a VM of which no other can be made.
func forkable(v store.VM, diskOnly bool) error {
	refuse := func(format string, args ...any) *fault.Error {
		return fault.New(fault.Conflict, "vm %s cannot be forked: %s", v.Name(), fmt.Sprintf(format, args...))
	}
	switch {
	case v.Hidden():
		return refuse("it belongs to an operation")
	case v.Spec.NoFork != "":
		return refuse("it is marked no-fork (%s)", v.Spec.NoFork).WithHint(`banger vm set --no-fork "" %s`, v.Name())
	case !v.Made:
		return refuse("it is still being made").WithHint("banger vm wait %s", v.Name())
	}
	switch v.State {
	case vm.Running, vm.Paused, vm.Suspended:
		return nil
	case vm.Created, vm.Stopped, vm.Failed:
		if diskOnly {
			return nil
		}
		return refuse("it is %s, there is no memory to copy", v.State).WithHint("banger vm fork --disk-only %s", v.Name())
	case vm.Starting:
		return refuse("it is still starting").WithHint("banger vm wait --state running %s", v.Name())
	}
	return refuse("it is %s", v.State).WithHint("banger vm list")
}

// cloneName is a name for the clone of v with that number, which no VM has.
func (s *vmService) cloneName(ctx context.Context, v store.VM, from int) (name vm.Name, number int) {
	for number = from; ; number++ {
		end := fmt.Sprintf("-%d", number)
		base := strings.TrimRight(string(v.Name()[:min(len(v.Name()), vm.MaxNameLength-len(end))]), "-")
		name = vm.Name(base + end)
		if !fault.Is(s.store.CheckName(ctx, name), fault.Exists) {
			return name, number
		}
	}
}
