package supervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// Save implements the RPC.
func (s service) Save(ctx context.Context, req *connect.Request[bangerv1.SupervisorSaveRequest]) (*connect.Response[bangerv1.SupervisorSaveResponse], error) {
	if dir := req.Msg.GetDir(); !filepath.IsAbs(dir) {
		return nil, fault.New(fault.Invalid, "directory %q is not absolute", dir)
	}
	if req.Msg.GetSyncGuest() {
		s.syncGuest(ctx)
	}
	var saved vmdir.SavedMachine
	var shared bool
	err := s.lead(ctx, task{limit: s.times.save, do: func(taskCtx context.Context, m hypervisor.Machine) (err error) {
		if err := ctx.Err(); err != nil { // who asked for it is gone
			return fault.Wrap(fault.ClassOf(err), context.Cause(ctx), "save")
		}
		if !req.Msg.GetSuspend() { // which is brought to its end, whoever waits for it
			cancelled, cancel := context.WithCancel(taskCtx)
			defer cancel()
			defer context.AfterFunc(ctx, cancel)()
			taskCtx = cancelled
		}
		saved, shared, err = s.save(taskCtx, m, req.Msg)
		return err
	}})
	if err != nil {
		return nil, err
	}
	if req.Msg.GetSuspend() {
		if _, err := s.awaitEnd(ctx); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&bangerv1.SupervisorSaveResponse{StillUs: saved.StillUS, DiskShared: shared}), nil
}

// save saves the machine. When it fails the directory is as it was, empty, and the guest runs or is paused as before.
// Leading goroutine only.
func (s *Supervisor) save(ctx context.Context, m hypervisor.Machine, req *bangerv1.SupervisorSaveRequest) (saved vmdir.SavedMachine, shared bool, err error) {
	dir := req.GetDir()
	saver, shaper, err := s.saver(m)
	if err != nil {
		return saved, false, err
	}
	if err := s.at(StepSaveBegin); err != nil {
		return saved, false, err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return saved, false, fault.New(fault.Invalid, "%s is not an empty directory (%v)", dir, err)
	}
	wasReady := s.board.phase() == phaseReady
	defer func() {
		if err == nil {
			return
		}
		if req.GetSuspend() && wasReady { // it may stand still, and nobody else will let it go on
			err = errors.Join(err, s.letGoOn(m))
		}
		err = errors.Join(err, emptyDir(dir))
	}()
	saved = vmdir.SavedMachine{Launch: s.launch, Created: time.Now().UTC().Truncate(time.Second)}
	saved.Launch.Name, saved.Launch.Guest.Hostname, saved.Launch.Pool = vm.Name(s.name()), s.name(), false
	saved.Launch.Prepared = false
	saved.Launch.Template, saved.Launch.TemplateKey, saved.Launch.TemplateFault = nil, "", ""
	saved.Launch.Resume, saved.Launch.Identity = nil, nil
	if saved.Shape, err = shaper.Shape(ctx, s.launch.Machine); err != nil {
		return saved, false, err
	}
	if saved.Disks, err = s.launch.Machine.DiskSizes(); err != nil {
		return saved, false, err
	}
	opt := hypervisor.SaveOptions{Stay: req.GetSuspend()}
	if req.GetDisk() {
		opt.Copies = map[string]string{s.launch.Guest.Disks.Data: filepath.Join(dir, vmdir.SavedDisk)}
	}
	report, err := saver.Save(ctx, *saved.Saved(dir), opt)
	if err != nil {
		return saved, false, err
	}
	saved.StillUS = report.Still.Microseconds()
	if err := s.seal(dir, &saved, req); err != nil {
		return saved, false, err
	}
	s.log.Info("machine is saved", "dir", dir, "still", report.Still, "suspend", req.GetSuspend())
	if req.GetSuspend() {
		s.suspended = true
		s.orders.killNow()
	}
	return saved, report.Shared, nil
}

// syncGuest has a guest that runs write out what programs have written, as far as it does so in time.
func (s *Supervisor) syncGuest(ctx context.Context) {
	conn, _ := s.link.get()
	if conn == nil || s.board.phase() != phaseReady {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.times.sync)
	defer cancel()
	if err := conn.client.Sync(ctx); err != nil {
		s.log.Warn("the guest does not sync", "error", err)
	}
}

// letGoOn lets the guest run after a suspend that failed, whose own time may be over. A guest that runs goes on running.
func (s *Supervisor) letGoOn(m hypervisor.Machine) error {
	if isDone(m) {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.orders.asked, s.times.task)
	defer cancel()
	defer onDone(ctx, m, cancel)()
	return s.resume(ctx, m)
}

// seal makes what was saved durable, and writes last what it is.
func (s *Supervisor) seal(dir string, saved *vmdir.SavedMachine, req *bangerv1.SupervisorSaveRequest) (err error) {
	path := s.diskPath()
	if req.GetDisk() {
		path = filepath.Join(dir, vmdir.SavedDisk)
	}
	if saved.Disk, err = vmdir.StampOf(path); err != nil {
		return fault.Wrap(fault.Internal, err, "disk")
	}
	names := []string{vmdir.SavedMemory, vmdir.SavedState}
	if req.GetDisk() {
		names = append(names, vmdir.SavedDisk)
	}
	if req.GetUnsynced() {
		names = nil
	}
	for _, name := range names {
		if err := syncFile(filepath.Join(dir, name)); err != nil {
			return fault.Wrap(fault.Internal, err, "save")
		}
	}
	if err := s.at(StepSaveSealed); err != nil {
		return err
	}
	if err := vmdir.WriteSaved(dir, *saved); err != nil {
		return fault.Wrap(fault.Internal, err, "save")
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

// saver returns what can save the machine and say what it depends on.
func (s *Supervisor) saver(m hypervisor.Machine) (hypervisor.Saver, hypervisor.Shaper, error) {
	saver, can := m.(hypervisor.Saver)
	shaper, ok := s.driver.(hypervisor.Shaper)
	if !can || !ok {
		return nil, nil, fault.New(fault.Invalid, "its vmm (%s) cannot save a machine", s.launch.Driver)
	}
	return saver, shaper, nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// emptyDir removes what is in a directory.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
