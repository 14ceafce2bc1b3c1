// Package daemon is the process that owns a user's VMs, images and kernels: one per user, started by the first command
// and gone without loss at any moment. VMs do not depend on it: each has a supervisor of its own, and a new daemon
// adopts those that run (adopt.go).
//
// It is split by resource. A service (vms.go, images.go, kernels.go, ops.go, events.go, fsck.go, status.go) is one Connect
// handler and holds no state; behind them are the fleet (running VMs), two libraries (images and kernels, package library),
// the builder of images, the operation registry and the store. What the daemon does by itself, again and again, is in guard.go: the fleet's reconciliation (adopt.go), its
// idle policy (idle.go) and its restart policy (restart.go).
//
// Locks, in the order in which they may be taken:
//
//	fleet.locks[id] -> { vmService.createMu, the libraries' shelf } -> leaves (fleet.mu, run.mu, the registry's, the store's)
//
// Only the lock of a VM is held across anything that takes long: what happens to one VM happens one after the other.
// createMu covers the reservation of a name, the shelf's the move of a finished image or kernel to its place.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/config"
	"banger/internal/daemon/builder"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	"banger/internal/hostmem"
	"banger/internal/hypervisor"
	"banger/internal/image/blob"
	"banger/internal/image/build"
	"banger/internal/image/layer"
	"banger/internal/operation"
	"banger/internal/paths"
	"banger/internal/rpc"
	"banger/internal/sock"
	"banger/internal/store"
	"banger/internal/template"
	"banger/proto/banger/v1/bangerv1connect"
)

// Bounds of the way down.
const (
	undoLimit  = 30 * time.Second // for cancelled operations to undo themselves
	drainLimit = 5 * time.Second  // for calls to get their answers
)

// partialAge is how long a download that was broken off is kept, so that the next one goes on where it ended.
const partialAge = 7 * 24 * time.Hour

// Config is everything a daemon needs. The composition root fills it in:
//
//	settings, err := config.Load(p.ConfigFile())
//	d, err := daemon.New(daemon.Config{
//		Paths: p, Build: version.Build(), Log: log, Settings: settings,
//		Drivers:    map[string]hypervisor.Driver{"qemu": qemu.New(...)},
//		Images:     daemon.Images(p, settings),
//		Kernels:    daemon.Kernels(p, settings),
//		FormatDisk: ext4.CopyFormatted,
//		Initramfs:  daemon.Initramfs(agentbin.Binary),
//		SupervisorCommand: []string{executable, "supervisor", "run"},
//		Ready:      ready, // daemon.ReadyFromEnv(), taken before anything can fail
//	})
//	err = d.Run(ctx) // until ctx ends (SIGTERM) or a client calls Shutdown
type Config struct {
	Paths    paths.Paths
	Build    string       // of this binary: clients replace a daemon of another build
	Log      *slog.Logger // nil: nothing is logged
	Settings config.Config
	Drivers  map[string]hypervisor.Driver // by the name that Settings.VMM.Driver uses
	Images   Source
	Kernels  Source

	// FormatDisk makes an empty formatted disk of size bytes at dst, from a template in cacheDir.
	FormatDisk func(ctx context.Context, cacheDir string, size uint64, dst string) error
	// Initramfs returns the initramfs for the kernel in kernelDir; it is made in cacheDir if need be.
	Initramfs func(cacheDir, kernelDir string) (path string, err error)
	// SupervisorCommand runs a supervisor; "--dir" and the VM's directory are added. SupervisorEnv is its environment;
	// nil: this process's.
	SupervisorCommand []string
	SupervisorEnv     []string
	// Ready hears that the daemon answers, or why it does not. May be nil.
	Ready *Ready
	// Times are for tests; zero values mean the usual ones.
	Times Times
	// FreeMemory says how much memory VMs that are started may take; nil: what the host has.
	FreeMemory func() (hostmem.Free, error)
	// Step is for tests: it is called at each named step, and its error is that step's. Nil in production.
	Step func(context.Context, Step) error
}

// Daemon is one daemon. Run runs it once.
type Daemon struct {
	cfg Config
	log *slog.Logger

	stop    context.CancelCauseFunc // ends Run
	stopCtx context.Context
	done    chan struct{} // closed when Run has returned

	mu  sync.Mutex // guards the field below
	ran bool
}

// errShutdown is why a daemon ends that was asked to.
var errShutdown = fault.New(fault.Cancelled, "the daemon is stopping")

// New checks the configuration. It touches nothing yet.
func New(cfg Config) (*Daemon, error) {
	driver := cfg.Settings.VMM.Driver
	if cfg.Drivers[driver] == nil {
		return nil, fault.New(fault.Invalid, "configuration: there is no vmm driver %q", driver).
			WithHint("${EDITOR:-vi} %s", cfg.Paths.ConfigFile())
	}
	if len(cfg.SupervisorCommand) == 0 {
		return nil, errors.New("daemon: SupervisorCommand is empty")
	}
	if cfg.SupervisorEnv == nil {
		cfg.SupervisorEnv = os.Environ()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Times.fill()
	d := &Daemon{cfg: cfg, log: cfg.Log.With("component", "daemon"), done: make(chan struct{})}
	d.stopCtx, d.stop = context.WithCancelCause(context.Background())
	return d, nil
}

// Run runs the daemon until ctx ends, a client calls Shutdown or Close is called. The error is nil after an orderly
// end. When a daemon runs already for the same directories it is a fault of class Conflict, and nothing was touched.
func (d *Daemon) Run(ctx context.Context) (err error) {
	d.mu.Lock()
	if d.ran {
		d.mu.Unlock()
		return errors.New("daemon: Run was called twice")
	}
	d.ran = true
	d.mu.Unlock()
	defer close(d.done)
	defer context.AfterFunc(ctx, func() { d.stop(errShutdown) })()
	defer func() { d.cfg.Ready.Report(err) }()

	if err := d.cfg.Paths.Ensure(); err != nil {
		return err
	}
	unlock, err := takeLock(d.cfg.Paths.DaemonLock())
	if err != nil {
		return err
	}
	defer unlock()
	if err := rotateLog(d.cfg.Paths.DaemonLog()); err != nil {
		d.log.Warn("cannot rotate the log", "error", err)
	}
	db, err := d.openStore(d.stopCtx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.closeStore(db)) }()
	db.KeepEvents(d.cfg.Settings.Limits.Events)
	if err := d.serve(newParts(d, db)); err != nil {
		return err
	}
	// Somebody wanted it to end, or it had to: then a service manager should start it again.
	if cause := context.Cause(d.stopCtx); !errors.Is(cause, errShutdown) {
		return cause
	}
	return nil
}

// serve brings the host in line with the store, answers clients and, at the end, takes everything down in order:
// operations, calls, watchers.
func (d *Daemon) serve(p *parts) error {
	defer p.fleet.close()
	p.sweep(d.stopCtx)
	p.fleet.tidyAll(d.stopCtx)
	// VMs first: what their rows use is kept.
	if err := p.fleet.rebuild(d.stopCtx); err != nil {
		return err
	}
	p.images.Adopt(d.stopCtx)
	p.kernels.Adopt(d.stopCtx)
	if err := p.fleet.reconcile(d.stopCtx, true); err != nil {
		return err
	}
	if err := p.fleet.comeBackAll(d.stopCtx); err != nil {
		return err
	}
	if cause := context.Cause(d.stopCtx); cause != nil {
		return cause
	}
	ln, err := sock.Listen(d.cfg.Paths.DaemonSocket())
	if err != nil {
		return err
	}
	defer d.log.Info("daemon has stopped")
	p.loops()
	defer d.fill(p.vms.pool)()
	d.log.Info("daemon is ready", "pid", os.Getpid(), "build", d.cfg.Build)
	d.cfg.Ready.Report(nil)
	return d.answer(p, ln)
}

// fill keeps the pool filled until the function that it returns is called, which empties it.
func (d *Daemon) fill(p *pool) (empty func()) {
	ctx, cancel := context.WithCancel(d.stopCtx)
	emptied := make(chan struct{})
	go func() { // ends by cancel
		defer close(emptied)
		p.run(ctx)
	}()
	return func() {
		cancel()
		<-emptied
	}
}

func (d *Daemon) answer(p *parts, ln net.Listener) error {
	// Operations go first: what they undo may be told to clients that still watch.
	drain, cancel := context.WithCancel(context.Background())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- rpc.Serve(drain, ln, p.handler(), drainLimit) }() // ends by cancel
	select {
	case err := <-served:
		return err
	case <-d.stopCtx.Done():
	}
	limit, cancelLimit := context.WithTimeout(context.Background(), undoLimit)
	defer cancelLimit()
	if err := p.ops.Close(limit, errShutdown); err != nil {
		d.log.Error("operations did not end in time", "error", err)
	}
	cancel()
	return <-served
}

// Close ends Run and waits for it.
func (d *Daemon) Close() error {
	d.stop(errShutdown)
	d.mu.Lock()
	ran := d.ran
	d.mu.Unlock()
	if ran {
		<-d.done
	}
	return nil
}

// parts are what a running daemon consists of.
type parts struct {
	daemon  *Daemon
	store   *store.Store
	ops     *operation.Registry[string]
	images  *library.Library
	kernels *library.Library
	blobs   *blob.Store
	builder *builder.Builder
	fleet   *fleet
	vms     *vmService
	shelf   *library.Shelf
	started time.Time
}

func newParts(d *Daemon, db *store.Store) *parts {
	p := &parts{daemon: d, store: db, ops: operation.New[string](), started: time.Now()}
	p.blobs = blob.Open(d.cfg.Paths.Blobs())
	p.shelf = library.NewShelf(d.cfg.Paths, db, d.log, d.cfg.Step)
	p.kernels = library.Kernels(p.shelf, d.cfg.Kernels, p.ops)
	p.images = library.Images(p.shelf, d.cfg.Images, p.ops, p.kernels)
	p.fleet = newFleet(d.cfg, d.log, db, d.stopCtx.Done(), func(ctx context.Context, v store.VM) {
		p.images.Collect(ctx, v.ImageDigest)
		p.kernels.Collect(ctx, v.KernelDigest)
	})
	p.builder = builder.New(builder.Config{
		Paths: d.cfg.Paths, Log: d.log, Images: p.images, Kernels: p.kernels, Shelf: p.shelf, Blobs: p.blobs,
		Machines: ownVMs{d.cfg, p.fleet}, Insecure: d.cfg.Settings.Registry.Insecure,
		Limits:         layer.Limits{Size: int64(min(d.cfg.Settings.Limits.ImageSize, math.MaxInt64)), Entries: d.cfg.Settings.Limits.ImageEntries},
		StandardKernel: func(ctx context.Context) string { return standardKernel(ctx, p.kernels) }, Step: d.cfg.Step,
	})
	p.fleet.templates = &templates{
		store: template.Open(d.cfg.Paths.Templates()), ops: p.ops, log: d.log, drivers: d.cfg.Drivers,
		limit: d.cfg.Settings.Limits.Templates, on: d.cfg.Settings.VMM.Templates, scratch: d.cfg.Paths.Run, inUse: p.fleet.usesTemplate,
	}
	p.vms = &vmService{cfg: d.cfg, log: d.log, store: db, ops: p.ops, images: p.images, kernels: p.kernels, fleet: p.fleet}
	p.vms.pool = newPool(p.vms, d.cfg.Settings.VMM.WarmPool)
	return p
}

// handler serves every service of the daemon.
func (p *parts) handler() http.Handler {
	cfg := p.daemon.cfg
	options := connect.WithHandlerOptions(
		connect.WithInterceptors(rpc.Faults(p.daemon.log)),
		connect.WithReadMaxBytes(4<<20),           // a build's script may have 1 MiB
		connect.WithCompression("gzip", nil, nil), // a socket on the same host: packing only costs
	)
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewVMServiceHandler(p.vms, options))
	mux.Handle(bangerv1connect.NewEventServiceHandler(&eventService{store: p.store, stopping: p.daemon.stopCtx.Done()}, options))
	mux.Handle(bangerv1connect.NewFsckServiceHandler(&fsckService{parts: p}, options))
	mux.Handle(bangerv1connect.NewOperationServiceHandler(&operationService{ops: p.ops}, options))
	mux.Handle(bangerv1connect.NewImageServiceHandler(&imageService{
		parts: p, lib: p.images, kernels: p.kernels, blobs: p.blobs, builder: p.builder, ops: p.ops, standard: cfg.Settings.Defaults.Image,
	}, options))
	mux.Handle(bangerv1connect.NewKernelServiceHandler(&kernelService{parts: p, lib: p.kernels, ops: p.ops}, options))
	mux.Handle(bangerv1connect.NewTemplateServiceHandler(&templateService{parts: p}, options))
	mux.Handle(bangerv1connect.NewSnapshotServiceHandler(&snapshotService{parts: p}, options))
	mux.Handle(bangerv1connect.NewDaemonServiceHandler(&daemonService{
		cfg: cfg, store: p.store, ops: p.ops, started: p.started, pool: p.vms.pool, shutdown: func() { p.daemon.stop(errShutdown) },
	}, options))
	return mux
}

// sweep removes what a daemon that was killed has left half made or half removed. Nobody else is there yet who could
// make something in these places. It takes its time in the background: nothing waits for it.
func (p *parts) sweep(ctx context.Context) {
	dirs := p.daemon.cfg.Paths
	for _, dir := range list(dirs.Staging()) {
		p.fleet.wg.Go(func() {
			if err := errors.Join(builder.Sweep(dir), p.images.Discard(ctx, dir)); err != nil {
				p.daemon.log.Warn("cannot remove a leftover", "dir", dir, "error", err)
			}
		})
	}
	p.fleet.wg.Go(func() {
		if _, err := p.blobs.Sweep(partialAge); err != nil {
			p.daemon.log.Warn("cannot remove downloads that were broken off", "error", err)
		}
		if err := build.OpenCache(dirs.BuildCache()).Sweep(time.Hour); err != nil {
			p.daemon.log.Warn("cannot remove what a build has left", "error", err)
		}
	})
	if err := p.fleet.templates.store.Clean(ctx); err != nil {
		p.daemon.log.Warn("cannot remove a leftover", "dir", dirs.Templates(), "error", err)
	}
	for _, dir := range list(dirs.Run) {
		if !template.IsScratch(name(dir)) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			p.daemon.log.Warn("cannot remove a leftover", "dir", dir, "error", err)
		}
	}
	for _, root := range []string{dirs.VMs(), dirs.Images(), dirs.Kernels()} {
		for _, dir := range list(root) {
			if !strings.HasPrefix(name(dir), removedPrefix) {
				continue
			}
			if err := os.RemoveAll(dir); err != nil {
				p.daemon.log.Warn("cannot remove a leftover", "dir", dir, "error", err)
			}
		}
	}
}
