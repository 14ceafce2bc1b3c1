package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmproc"
)

// A machine is saved by QEMU's migration. The state of CPUs and devices is a stream of some 60 KB; memory is in it only if
// it is not a shared mapping of a file (capability x-ignore-shared). So a machine with Spec.MemoryFile has nothing to
// copy. Any other is migrated, while it runs, to a second QEMU that has such memory and never runs: that one is then
// saved. In this way every saved machine is a file of memory that any number of machines can map, and share.
//
// Streams go over a Unix socket in the run directory and not through a file or a command: every version of QEMU can, and
// the sandbox lets QEMU start nothing.

// Names in Spec.RunDir.
const (
	stateSocket = "state.sock" // of a migration
	saveDir     = "save"       // RunDir of the second QEMU
)

const (
	// maxState bounds the stream of a saved state: QEMU is not trusted with the disk.
	maxState = 64 << 20
	// longestCopy is how long a guest may go on while it is copied; one that dirties its memory faster than it is copied is
	// stopped then.
	longestCopy = 5 * time.Second
	// downtime is what is aimed at, in milliseconds: the guest is stopped when the rest takes no longer.
	downtime = 10
	// migrationPause is the time between two looks at a migration while the guest stands still, and runningPause while it
	// runs: every look is in the way of its disks and of the migration.
	migrationPause = time.Millisecond
	runningPause   = 20 * time.Millisecond
)

// capIgnoreShared is a capability of QEMU's migration (docs/devel/migration, qapi/migration.json).
const capIgnoreShared = "x-ignore-shared"

// restore loads the state and lets the machine run. Disks that can be written to may have another size than those of the
// machine that was saved; the guest is told.
func (m *Machine) restore(ctx context.Context, from hypervisor.Saved) error {
	state, err := os.Open(from.State)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "saved state")
	}
	defer func() { _ = state.Close() }()
	if err := m.capability(ctx, capIgnoreShared, true); err != nil {
		return err
	}
	// The guest was saved with a host at the other end of its port. One that finds nobody there thinks that the host has
	// gone, and tries again only after a pause.
	if err := m.agent.Prepare(ctx); err != nil {
		return err
	}
	path := filepath.Join(m.spec.RunDir, stateSocket)
	if err := m.qmp.Execute(ctx, "migrate-incoming", map[string]any{"uri": "unix:" + path}, nil); err != nil {
		return err
	}
	conn, err := vmmproc.Dial(ctx, path, m.process.Exited())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := io.Copy(conn, state); err != nil {
		return fault.Wrap(fault.Unavailable, err, "load the saved state")
	}
	if err := conn.Close(); err != nil {
		return err
	}
	if err := m.arrived(ctx); err != nil {
		return err
	}
	// It runs first: newer versions of QEMU (10.0) leave the disks to the sender until then, and resize none.
	if err := m.Resume(ctx); err != nil {
		return err
	}
	return m.tellSizes(ctx, from.Disks)
}

// tellSizes tells the guest of disks that have another size than it knew.
func (m *Machine) tellSizes(ctx context.Context, known map[string]uint64) error {
	sizes, err := m.spec.DiskSizes()
	if err != nil {
		return err
	}
	for i, disk := range m.spec.Disks {
		size := sizes[disk.Serial]
		if disk.ReadOnly || size == known[disk.Serial] {
			continue
		}
		if err := m.qmp.Execute(ctx, "block_resize", map[string]any{"node-name": nodeName(i), "size": size}, nil); err != nil {
			return err
		}
	}
	return nil
}

// arrived waits until an incoming migration is complete.
func (m *Machine) arrived(ctx context.Context) error {
	for {
		var status struct {
			Status string `json:"status"`
		}
		if err := m.qmp.Execute(ctx, "query-status", nil, &status); err != nil {
			return err
		}
		if status.Status != "inmigrate" {
			return nil
		}
		if _, err := m.nap(ctx, migrationPause); err != nil {
			return err
		}
	}
}

// nap waits a moment, or until the CPUs stop.
func (m *Machine) nap(ctx context.Context, pause time.Duration) (stopped bool, err error) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, nil
	case <-m.stops:
		return true, nil
	case <-m.process.Exited():
		return false, fault.New(fault.Unavailable, "QEMU has ended")
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// capability switches a capability of the migration.
func (m *Machine) capability(ctx context.Context, name string, on bool) error {
	caps := []map[string]any{{"capability": name, "state": on}}
	return m.qmp.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": caps}, nil)
}

// Save implements hypervisor.Saver.
func (m *Machine) Save(ctx context.Context, to hypervisor.Saved, opt hypervisor.SaveOptions) (report hypervisor.SaveReport, err error) {
	copies, err := m.copies(ctx, opt)
	if err != nil {
		return report, m.explain(err, "save")
	}
	defer func() {
		if err = errors.Join(err, copies.end(ctx, err == nil)); err == nil {
			return
		}
		err = errors.Join(m.explain(err, "save"), copies.remove(), remove(to.State))
		if m.spec.MemoryFile != to.Memory {
			err = errors.Join(err, remove(to.Memory))
		}
	}()
	report.Shared = copies.shared
	if m.spec.MemoryFile == to.Memory {
		report.Still, err = m.saveShared(ctx, to.State, opt, copies)
		return report, err
	}
	report.Still, err = m.saveDirect(ctx, to, opt, copies)
	if !errors.Is(err, errIndirect) && !cannot(err) {
		return report, err
	}
	m.driver.opts.Log.DebugContext(ctx, "machine is saved by migration", "vm", m.spec.ID, "reason", err)
	if err := errors.Join(remove(to.Memory), remove(to.State), copies.detach(ctx)); err != nil {
		return report, err
	}
	report.Still, err = m.saveCopy(ctx, to, opt, copies)
	return report, err
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// saveShared saves a machine whose memory is a shared file.
func (m *Machine) saveShared(ctx context.Context, state string, opt hypervisor.SaveOptions, copies *copies) (time.Duration, error) {
	goOn, err := m.letGoOn(ctx, opt)
	if err != nil {
		return 0, err
	}
	if err = m.Pause(ctx); err == nil { // else it may stand still all the same
		err = m.writeState(ctx, state)
	}
	if err == nil {
		err = copies.still(ctx)
	}
	return goOn(err)
}

// letGoOn returns what ends a Save: it lets the machine run if it did before, and says for how long it stood still.
func (m *Machine) letGoOn(ctx context.Context, opt hypervisor.SaveOptions) (func(error) (time.Duration, error), error) {
	was, err := m.status(ctx)
	if err != nil {
		return nil, err
	}
	return func(err error) (time.Duration, error) {
		if was != stateRunning || opt.Stay && err == nil {
			return 0, err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
		defer cancel()
		err = errors.Join(err, m.Resume(ctx))
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.resumed.Sub(m.stopped), err
	}, nil
}

func (m *Machine) status(ctx context.Context) (string, error) {
	var status struct {
		Status string `json:"status"`
	}
	err := m.qmp.Execute(ctx, "query-status", nil, &status)
	return status.Status, err
}

// writeState writes the state of a machine that stands still, without its memory, to a new file.
func (m *Machine) writeState(ctx context.Context, path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if err := m.capability(ctx, capIgnoreShared, true); err != nil {
		return err
	}
	socket := filepath.Join(m.spec.RunDir, stateSocket)
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	received := make(chan error, 1)
	go func() { received <- receive(ctx, listener, file) }() // ends with the listener or the stream; waited for below
	err = m.migrate(ctx, socket)
	if err == nil {
		err = m.migrated(ctx, false)
	}
	if err != nil {
		_ = listener.Close()
	}
	return errors.Join(err, <-received)
}

// receive writes the one stream that comes to a file. It ends with ctx, too.
func receive(ctx context.Context, listener net.Listener, file *os.File) error {
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })() // QEMU may say that it is done, and never come
	conn, err := listener.Accept()
	if err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	n, err := io.Copy(file, io.LimitReader(conn, maxState))
	if err == nil && n == maxState {
		err = fault.New(fault.Internal, "the saved state has more than %d bytes", maxState)
	}
	if err == nil {
		err = file.Sync()
	}
	return err
}

func (m *Machine) migrate(ctx context.Context, socket string) error {
	return m.qmp.Execute(ctx, "migrate", map[string]any{"uri": "unix:" + socket}, nil)
}

// migrated waits until an outgoing migration is complete. running is whether the guest ran when it began.
func (m *Machine) migrated(ctx context.Context, running bool) error {
	pause := migrationPause
	if running {
		pause = runningPause
	}
	for {
		var info struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := m.qmp.Execute(ctx, "query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fault.New(fault.Internal, "QEMU cannot save the machine: %s %s", info.Status, text(info.Desc))
		}
		stopped, err := m.nap(ctx, pause)
		if err != nil {
			return err
		}
		if stopped {
			pause = migrationPause
		}
	}
}

// saveCopy saves a machine whose memory is its own, by way of a second QEMU.
func (m *Machine) saveCopy(ctx context.Context, to hypervisor.Saved, opt hypervisor.SaveOptions, copies *copies) (still time.Duration, err error) {
	receiver, done, err := m.receiver(ctx, to.Memory)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, done()) }()
	goOn, err := m.letGoOn(ctx, opt)
	if err != nil {
		return 0, err
	}
	if opt.Stay { // it takes longer while the guest runs
		if err := m.Pause(ctx); err != nil {
			return goOn(err)
		}
	}
	finish := func(err error) error {
		if err == nil {
			err = receiver.arrived(ctx)
		}
		if err == nil {
			err = receiver.writeState(ctx, to.State)
		}
		return err
	}
	sent := m.send(ctx, receiver)
	if sent == nil { // it stands still now
		sent = copies.still(ctx)
	}
	if opt.Stay { // nobody else lets it go on when the rest fails
		return goOn(finish(sent))
	}
	if still, err = goOn(sent); err != nil {
		return still, err
	}
	return still, finish(nil)
}

// send migrates the machine to the receiver. When it fails the migration is over.
func (m *Machine) send(ctx context.Context, receiver *Machine) (err error) {
	socket := filepath.Join(receiver.spec.RunDir, stateSocket)
	if err := receiver.qmp.Execute(ctx, "migrate-incoming", map[string]any{"uri": "unix:" + socket}, nil); err != nil {
		return err
	}
	if err := m.capability(ctx, capIgnoreShared, false); err != nil {
		return err
	}
	limits := map[string]any{"downtime-limit": downtime, "max-bandwidth": int64(1) << 40}
	if err := m.qmp.Execute(ctx, "migrate-set-parameters", limits, nil); err != nil {
		return err
	}
	select {
	case <-m.stops: // of a pause before
	default:
	}
	if err := m.migrate(ctx, socket); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
		defer cancel()
		_ = m.qmp.Execute(ctx, "migrate_cancel", nil, nil) // does nothing when it has failed by itself
		_ = m.migrated(ctx, false)
	}()
	// A guest that is faster than the copy is stopped; the rest is then over soon.
	stopped := make(chan struct{})
	hurry := time.AfterFunc(longestCopy, func() {
		defer close(stopped)
		_ = m.qmp.Execute(ctx, "stop", nil, nil)
	})
	defer func() {
		if !hurry.Stop() { // it must not come after the guest was let go on
			<-stopped
		}
	}()
	return m.migrated(ctx, true)
}

// receiver starts a QEMU that is like this one, but for its memory, which is a new shared file, and its disks, which are
// empty: what it is sent does not touch them. The function ends it and removes what it had.
func (m *Machine) receiver(ctx context.Context, memory string) (*Machine, func() error, error) {
	spec := m.spec
	spec.Restore, spec.MemoryFile, spec.RunDir = nil, memory, filepath.Join(m.spec.RunDir, saveDir)
	spec.Console, spec.Log, spec.Halted = nil, nil, nil
	spec.Disks = slices.Clone(spec.Disks)
	if err := os.RemoveAll(spec.RunDir); err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(spec.RunDir, 0o700); err != nil {
		return nil, nil, err
	}
	clean := func() error { return os.RemoveAll(spec.RunDir) }
	for i, disk := range spec.Disks {
		if disk.ReadOnly {
			continue
		}
		info, err := os.Stat(disk.Path)
		if err != nil {
			return nil, nil, errors.Join(err, clean())
		}
		spec.Disks[i].Path = filepath.Join(spec.RunDir, fmt.Sprintf("disk%d", i))
		if err := hole(spec.Disks[i].Path, info.Size()); err != nil {
			return nil, nil, errors.Join(err, clean())
		}
	}
	receiver, err := m.driver.spawn(ctx, spec, true)
	if err == nil {
		return receiver, func() error { receiver.destroy(); return clean() }, nil
	}
	return nil, nil, errors.Join(err, clean())
}

// hole makes a file that has a size and nothing in it.
func hole(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}
