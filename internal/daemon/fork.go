package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"banger/internal/agentwire"
	"banger/internal/atomicfile"
	"banger/internal/diskcopy"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/netstack"
	"banger/internal/paths"
	"banger/internal/progress"
	"banger/internal/store"
	"banger/internal/undo"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// A fork saves the VM once, into the staging area, and makes VMs of that which are suspended: each has a copy of the disk,
// a link to the one file of the memory, and the word that its guest is another one when it goes on
// (SavedMachine.Identity). Then they are started like any VM that is suspended. They map the file privately, so all
// share the pages that they have not written to; it is gone with the last of its names, while they run.
//
// The rows of the clones are completed at the end, of all in one transaction. So a daemon that dies before leaves nothing of
// them: VMs whose rows are not complete are removed by the next one. The staging area is emptied by it, too.

// clonesAtOnce is how many clones are started at the same time: one for each processor, since each has a second of work under
// software emulation. With fewer than three, processors idle while clones wait for each other's steps.
func clonesAtOnce() int { return max(3, runtime.NumCPU()) }

// Stages of a fork.
const (
	stageSave   = "save"
	stageClones = "clones"
)

// fork makes the clones, all or none. It returns their ids.
func (s *vmService) fork(ctx context.Context, o forkOrder, report progress.Func) (_ string, err error) {
	source, err := s.store.VM(ctx, o.source)
	if err != nil {
		return "", err
	}
	if o.start {
		release, err := s.fleet.admission.admit(admissionFor{what: clonesOf(o.count, source), count: o.count,
			fewer: "banger vm fork -n %d " + string(source.Name())}, source.Spec.Memory)
		if err != nil {
			return "", err
		}
		defer release()
	}
	unlock := func() {} // of the clones: after the undo, for nobody is to get hold of one that is being removed
	defer func() { unlock() }()
	var u undo.Stack
	defer func() {
		if undoErr := u.Run(ctx); undoErr != nil {
			s.log.ErrorContext(ctx, "a fork that failed left something behind", "vm", o.source, "error", undoErr)
		}
	}()
	stage, err := s.fleet.stage(ctx, o, &u, report)
	if err != nil {
		return "", err
	}
	var clones []store.VM
	if clones, unlock, err = s.clones(ctx, o, stage, &u, report); err != nil {
		return "", err
	}
	if o.start {
		err = s.startClones(ctx, clones, report)
	} else {
		err = s.fleet.syncDisks(clones)
	}
	if err != nil {
		return "", err
	}
	if err := s.cfg.step(ctx, StepForkStarted); err != nil {
		return "", err
	}
	var ids []vm.ID
	var texts []string
	for _, c := range clones {
		ids, texts = append(ids, c.ID), append(texts, string(c.ID))
	}
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	if err := s.store.MarkForked(ctx, ids, stage.memory && !o.start); err != nil {
		return "", err
	}
	u.Disarm()
	if err := os.RemoveAll(stage.dir); err != nil {
		s.log.WarnContext(ctx, "the staging area of a fork is left until the next start of the daemon", "error", err)
	}
	if o.start {
		s.fleet.wg.Go(func() {
			if err := s.fleet.syncDisks(clones); err != nil {
				s.log.Warn("cannot sync the disks of clones", "vm", o.source, "error", err)
			}
		})
	}
	s.log.InfoContext(ctx, "vm forked", "vm", o.source, "clones", len(clones), "still_us", stage.still)
	// What fails from here on changes nothing any more: the clones are there.
	_ = s.cfg.step(ctx, StepForkMade)
	return strings.Join(texts, ","), nil
}

// staged is what a fork has of its source.
type staged struct {
	source store.VM
	dir    string // has disk.ext4, and with memory a whole saved machine
	memory bool
	saved  vmdir.SavedMachine // with memory
	still  int64              // microseconds
	at     time.Time
}

// stage puts the source's present state into a directory of its own. It is all that the source's lock is held for.
func (f *fleet) stage(ctx context.Context, o forkOrder, u *undo.Stack, report progress.Func) (st staged, err error) {
	unlock, err := f.lock(ctx, o.source, patient)
	if err != nil {
		return st, err
	}
	defer unlock()
	v, err := f.store.VM(ctx, o.source)
	if err != nil {
		return st, err
	}
	if err := forkable(v, o.diskOnly); err != nil {
		return st, err
	}
	if err := f.roomToFork(v, o); err != nil {
		return st, err
	}
	report(progress.Update{Stage: stageSave, Message: "copying " + string(v.Name())})
	st = staged{source: v, memory: !o.diskOnly, at: time.Now().UTC().Truncate(time.Millisecond)}
	if st.dir, err = os.MkdirTemp(f.cfg.Paths.Staging(), "fork-"); err != nil {
		return st, withClass(err)
	}
	u.Add("empty the staging area", func(context.Context) error { return os.RemoveAll(st.dir) })
	if err := f.fillStage(ctx, v, &st); err != nil {
		return st, fault.Context(withClass(err), "fork vm %s", v.Name())
	}
	if st.memory {
		if st.saved, err = vmdir.ReadSaved(st.dir); err != nil {
			return st, fault.Context(err, "fork vm %s", v.Name())
		}
		if err := f.sameShape(ctx, v.Driver, st.saved.Launch.Machine, st.saved.Shape); err != nil {
			return st, fault.Wrap(fault.Conflict, err, "vm %s cannot be forked with its memory", v.Name()).
				WithHint("banger vm fork --disk-only %s", v.Name())
		}
	}
	report(progress.Update{Stage: stageSave, Message: "copied " + string(v.Name()), Done: 1, Total: 1})
	return st, f.cfg.step(ctx, StepForkStaged)
}

// fillStage saves a VM that runs and goes on; of one that is suspended the memory is taken as it is.
func (f *fleet) fillStage(ctx context.Context, v store.VM, st *staged) error {
	disk := f.dir(v.ID).Path(paths.VMDisk)
	switch {
	case v.State == vm.Running || v.State == vm.Paused:
		resp, err := f.saveRunning(ctx, v, &bangerv1.SupervisorSaveRequest{Dir: st.dir, Disk: true, SyncGuest: !st.memory})
		if err == nil {
			st.still = resp.GetStillUs()
		}
		return err
	case v.State == vm.Suspended && st.memory:
		saved, err := f.readSuspended(v.ID)
		if err != nil {
			return fault.Wrap(fault.Conflict, err, "it cannot go on from its memory").WithHint("banger vm fork --disk-only %s", v.Name())
		}
		saved.StillUS = 0 // it stood still anyway
		_, err = pairUp(ctx, disk, 0, saved, f.suspendedDir(v.ID), st.dir, st.dir)
		return err
	}
	_, err := copyDisk(ctx, disk, filepath.Join(st.dir, vmdir.SavedDisk), 0)
	return err
}

// roomToFork refuses early where the clones' disks might not fit.
func (f *fleet) roomToFork(v store.VM, o forkOrder) error {
	dir := string(f.dir(v.ID))
	need := used(f.dir(v.ID).Path(paths.VMDisk)) * uint64(o.count)
	if diskcopy.Shares(dir) {
		need = 0
	}
	if !o.diskOnly && v.State != vm.Suspended {
		need += v.Spec.Memory
	}
	free, err := ext4.Free(dir)
	if err == nil && free < need {
		return fault.New(fault.Exhausted, "up to %s on the disk are needed for %s, %s are free",
			vm.FormatSize(need), clonesOf(o.count, v), vm.FormatSize(free)).WithHint("banger image prune")
	}
	return nil
}

// clonesOf names what a fork makes.
func clonesOf(count int, source store.VM) string {
	if count == 1 {
		return "a clone of vm " + string(source.Name())
	}
	return fmt.Sprintf("%d clones of vm %s", count, source.Name())
}

// clones makes the VMs, none of which runs. unlock gives back their locks.
func (s *vmService) clones(ctx context.Context, o forkOrder, st staged, u *undo.Stack, report progress.Func) (clones []store.VM, unlock func(), err error) {
	var unlocks []func()
	unlock = func() {
		for _, f := range unlocks {
			f()
		}
	}
	var ids []vm.ID
	u.Add("remove the clones", func(ctx context.Context) error { return s.fleet.destroyAll(ctx, ids) })
	number := 0
	for i := range o.count {
		report(progress.Update{Stage: stageClones, Message: "making clones", Done: uint64(i), Total: uint64(o.count)})
		id := vm.NewID()
		ids = append(ids, id)
		release, err := s.fleet.lock(ctx, id, patient)
		if err != nil {
			return nil, unlock, err
		}
		unlocks = append(unlocks, release)
		v := s.cloneRow(st, o, id)
		if len(o.names) > 0 {
			v.Spec.Name = o.names[i]
			err = s.insert(ctx, &v, true)
		} else {
			number, err = s.insertClone(ctx, st.source, &v, number+1)
		}
		if err == nil {
			err = s.cfg.step(ctx, StepForkRow)
		}
		if err == nil {
			err = s.fleet.buildClone(ctx, v, st, i == o.count-1)
		}
		if err != nil {
			return nil, unlock, fault.Context(withClass(err), "fork vm %s: clone %s", st.source.Name(), v.Name())
		}
		clones = append(clones, v)
	}
	return clones, unlock, nil
}

// cloneRow is the row of a clone, but for its name.
func (s *vmService) cloneRow(st staged, o forkOrder, id vm.ID) store.VM {
	v := store.VM{
		ID: id, Spec: st.source.Spec, MachineID: machineID(), Driver: st.source.Driver, ImageDigest: st.source.ImageDigest,
		KernelDigest: st.source.KernelDigest, KernelVersion: st.source.KernelVersion, State: vm.Created,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), ResetToken: st.source.ResetToken,
		Origin: &vm.Origin{ID: st.source.ID, Name: st.source.Name(), At: st.at, StillUS: st.still},
	}
	v.Spec.Remove = o.remove
	return v
}

// insertClone inserts a clone under the first generated name from that number on which is free. It returns its number.
func (s *vmService) insertClone(ctx context.Context, source store.VM, v *store.VM, from int) (int, error) {
	for {
		v.Spec.Name, from = s.cloneName(ctx, source, from)
		err := s.insert(ctx, v, true)
		if !fault.Is(err, fault.Exists) { // else somebody was faster
			return from, err
		}
	}
}

// buildClone makes the directory of a clone. The last one takes the staged disk itself.
func (f *fleet) buildClone(ctx context.Context, v store.VM, st staged, last bool) error {
	dir := f.dir(v.ID)
	if err := os.Mkdir(string(dir), 0o700); err != nil {
		return err
	}
	from, disk := filepath.Join(st.dir, vmdir.SavedDisk), dir.Path(paths.VMDisk)
	var err error
	if last {
		err = os.Rename(from, disk)
	} else {
		_, err = diskcopy.Copy(ctx, from, disk)
	}
	if err == nil && st.memory {
		err = f.linkMemory(v, st)
	}
	if err == nil {
		err = dir.WriteRecord(recordOf(v))
	}
	if err != nil {
		return err
	}
	return f.cfg.step(ctx, StepForkBuilt)
}

// linkMemory makes a clone one that was suspended at the instant of the fork.
func (f *fleet) linkMemory(v store.VM, st staged) (err error) {
	suspended := f.suspendedDir(v.ID)
	if err := os.Mkdir(suspended, 0o700); err != nil {
		return err
	}
	for _, name := range []string{vmdir.SavedMemory, vmdir.SavedState} {
		if err := os.Link(filepath.Join(st.dir, name), filepath.Join(suspended, name)); err != nil {
			return err
		}
	}
	disk := f.dir(v.ID).Path(paths.VMDisk)
	saved := st.saved
	saved.Launch = launchOfClone(saved.Launch, v, disk, f.cfg.Paths.VMRun(string(v.ID)))
	saved.Identity = &agentwire.Identity{
		Hostname: string(v.Name()), MachineID: v.MachineID, BootID: randomUUID(), Network: netstack.For(v.ID, v.Address).Guest,
	}
	if saved.Disk, err = vmdir.StampOf(disk); err != nil {
		return err
	}
	return vmdir.WriteSaved(suspended, saved)
}

// launchOfClone is the launch of the VM that a clone was made from, made its own.
func launchOfClone(l vmdir.Launch, v store.VM, disk, runDir string) vmdir.Launch {
	l.VMID, l.Name = v.ID, v.Name()
	l.Machine.ID, l.Machine.Name, l.Machine.RunDir = string(v.ID), string(v.Name()), runDir
	l.Machine.Disks = slices.Clone(l.Machine.Disks)
	if i := slices.IndexFunc(l.Machine.Disks, func(d hypervisor.Disk) bool { return d.Serial == serialData }); i >= 0 {
		l.Machine.Disks[i].Path = disk
	}
	l.Guest.Hostname, l.Guest.MachineID, l.Guest.Network = string(v.Name()), v.MachineID, netstack.For(v.ID, v.Address).Guest
	return l
}

// startClones starts the clones, some at a time. The first failure ends it; what is left of the others is undone.
func (s *vmService) startClones(ctx context.Context, clones []store.VM, report progress.Func) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(clonesAtOnce())
	started := make(chan struct{}, len(clones))
	for _, v := range clones {
		group.Go(func() error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if s.fleet.keepsMemory(v.ID) {
				v.State = vm.Suspended // its row is not complete yet
			}
			err := s.fleet.start(ctx, v, startOptions{admitted: true, report: report})
			if err != nil {
				return fault.Context(withoutHintAt(err, v.Name()), "clone %s", v.Name())
			}
			started <- struct{}{}
			report(progress.Update{Stage: stageClones, Message: "started " + string(v.Name()), Done: uint64(len(started)), Total: uint64(len(clones))})
			return nil
		})
	}
	return group.Wait()
}

// syncDisks makes the disks of clones durable. The guests think that what they have flushed before the fork is. Of clones
// that run nobody waits for it; a memory must not be found beside a disk that has lost something.
func (f *fleet) syncDisks(clones []store.VM) error {
	for _, v := range clones {
		file, err := os.OpenFile(f.dir(v.ID).Path(paths.VMDisk), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) { // it was removed meanwhile
			continue
		}
		if err == nil {
			err = errors.Join(file.Sync(), file.Close())
		}
		if err != nil {
			return fault.Context(withClass(err), "disk of vm %s", v.Name())
		}
	}
	return atomicfile.SyncDir(f.cfg.Paths.VMs())
}

// withoutHintAt replaces a hint at a VM that is not there any more when somebody reads it.
func withoutHintAt(err error, name vm.Name) error {
	if !strings.Contains(fault.HintOf(err), string(name)) {
		return err
	}
	return fault.Wrap(fault.ClassOf(err), err, "nothing was forked").WithHint("banger doctor")
}

// destroyAll removes VMs whose locks the caller holds.
func (f *fleet) destroyAll(ctx context.Context, ids []vm.ID) error {
	errs := make([]error, len(ids))
	var group errgroup.Group
	group.SetLimit(8)
	for i, id := range ids {
		group.Go(func() error {
			errs[i] = f.destroy(ctx, id)
			return nil
		})
	}
	_ = group.Wait()
	return errors.Join(errs...)
}

// randomUUID is a random UUID, as the kernel makes one at boot.
func randomUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
