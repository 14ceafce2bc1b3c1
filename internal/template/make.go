package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/agentwire"
	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/proc"
	"banger/internal/undo"
)

const (
	// bootDeadline is how long one boot may take until the agent waits, and bootAttempts how many are made: a guest may hang
	// in its first seconds under software emulation.
	bootDeadline = 30 * time.Second
	bootAttempts = 3
	saveDeadline = 30 * time.Second
	endDeadline  = 10 * time.Second // for a killed VMM to be gone

	// placeholder is the size of the disks that a VM can write to, while there is no VM. They are told their size when
	// they are swapped.
	placeholder = 256 << 20
)

// Request says what a template is to be made of.
type Request struct {
	Driver hypervisor.Driver // with Features.Save
	// Spec is that of a VM of the shape. Its disks are not touched.
	Spec    hypervisor.Spec
	Shape   string
	Kernel  string // release, for people
	Scratch string // existing directory for sockets, with a short path
	// Prepare, if it is not nil, makes a prepared template.
	Prepare *Preparation
	// Background makes it with what the host's processors have left over.
	Background bool
}

// purpose is what VMs ask for. Of two templates that serve the same purpose the younger one is the successor: the agent, the
// VMM, the host or the image has become another one since the older was made.
func (r Request) purpose() string {
	text := fmt.Sprintf("%s %d cpus %d bytes %s", r.Driver.Name(), r.Spec.CPUs, r.Spec.Memory, r.Spec.Kernel)
	if p := r.Prepare; p != nil {
		text += fmt.Sprintf(" image %s user %s", p.Image, p.Guest.User)
	}
	return text
}

// scratchPrefix begins the name of the directory for sockets of a machine that is being made. It is short, since sockets
// have short names, and no VM's id begins so.
const scratchPrefix = "t."

// IsScratch reports whether a directory of that name in Request.Scratch is one of Make's. Where nobody makes a template, a
// process that was killed has left it.
func IsScratch(name string) bool { return strings.HasPrefix(name, scratchPrefix) }

// Make boots a machine, saves it while its agent waits and puts the result in its place. When it fails nothing is left:
// no process, no file.
func (s *Store) Make(ctx context.Context, r Request) (t Template, err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return Template{}, fault.Wrap(fault.Internal, err, "templates")
	}
	key := Key(r.Shape)
	if err := s.room(r.Spec.Memory); err != nil {
		return Template{}, err
	}
	var cleanup undo.Stack // never disarmed: a directory that was renamed is not there any more
	defer func() { err = errors.Join(err, cleanup.Run(ctx)) }()
	dir, err := os.MkdirTemp(s.dir, ".new-*")
	if err != nil {
		return Template{}, fault.Wrap(fault.Internal, err, "template %s", key)
	}
	cleanup.Add("remove the unfinished template", func(context.Context) error { return os.RemoveAll(dir) })
	run, err := os.MkdirTemp(r.Scratch, scratchPrefix+"*")
	if err != nil {
		return Template{}, fault.Wrap(fault.Internal, err, "template %s", key)
	}
	cleanup.Add("remove the run directory", func(context.Context) error { return os.RemoveAll(run) })

	saved := hypervisor.Saved{Memory: filepath.Join(dir, memoryFile), State: filepath.Join(dir, stateFile)}
	var spec hypervisor.Spec
	if r.Prepare == nil {
		spec, err = r.machine(run, saved.Memory)
	} else {
		spec = r.preparedMachine(run, dir, saved.Memory)
	}
	if err == nil {
		err = r.save(ctx, spec, saved)
	}
	if err == nil {
		saved.Disks, err = spec.DiskSizes()
	}
	if err == nil {
		err = r.describe(key, dir, saved)
	}
	if err == nil {
		err = s.publish(dir, key)
	}
	if err != nil {
		return Template{}, fault.Context(err, "make template %s", key)
	}
	return s.Get(key)
}

// room refuses to begin where the memory might not fit. A guest that waits has touched less than half of a small memory.
func (s *Store) room(memory uint64) error {
	free, err := ext4.Free(s.dir)
	if err == nil && free < memory {
		return fault.New(fault.Exhausted, "a template needs up to %d MiB on the disk, %d MiB are free", memory>>20, free>>20).
			WithHint("banger template prune")
	}
	return nil
}

// machine is the Spec of the machine that is saved: its disks are empty, and its memory is a file.
func (r Request) machine(run, memory string) (hypervisor.Spec, error) {
	spec := r.Spec
	spec.ID, spec.Name, spec.RunDir, spec.MemoryFile, spec.Restore = "template", "template", run, memory, nil
	spec.Console, spec.Log, spec.Halted = io.Discard, io.Discard, nil
	spec.Disks = slices.Clone(spec.Disks)
	for i, disk := range spec.Disks {
		size := int64(placeholder)
		if disk.ReadOnly {
			info, err := os.Stat(disk.Path)
			if err != nil {
				return spec, err
			}
			size = info.Size()
		}
		spec.Disks[i].Path = filepath.Join(run, fmt.Sprintf("disk%d", i))
		if err := os.WriteFile(spec.Disks[i].Path, nil, 0o600); err != nil {
			return spec, err
		}
		if err := os.Truncate(spec.Disks[i].Path, size); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

// save boots the machine, in several attempts if need be, and saves it.
func (r Request) save(ctx context.Context, spec hypervisor.Spec, to hypervisor.Saved) error {
	for try := 1; ; try++ {
		err := r.newDisk(ctx, spec)
		if err == nil {
			err = r.attempt(ctx, spec, to)
		}
		if err == nil || ctx.Err() != nil || try == bootAttempts || !fault.Is(err, fault.Timeout) && !fault.Is(err, fault.Unavailable) {
			return err
		}
		if err := os.Remove(to.Memory); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
}

func (r Request) attempt(ctx context.Context, spec hypervisor.Spec, to hypervisor.Saved) (err error) {
	words := &tail{}
	spec.Console = words
	m, err := r.Driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(m)) }()
	if r.Background {
		proc.Background(m.PID())
	}
	if err = r.prepare(ctx, m); err == nil {
		err = r.await(ctx, m)
	}
	if err != nil {
		if ctx.Err() != nil {
			return fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "the guest is not up yet")
		}
		return fault.Context(err, "the guest does not come up; its console ends with %q", words)
	}
	saver, ok := m.(hypervisor.Saver)
	if !ok {
		return fault.New(fault.Unavailable, "%s cannot save its machines", r.Driver.Name())
	}
	ctx, cancel := context.WithTimeout(ctx, saveDeadline)
	defer cancel()
	_, err = saver.Save(ctx, to, hypervisor.SaveOptions{Stay: true})
	return err
}

// await waits until the guest's agent waits for a host. The channel stays open until the machine ends, so that a machine
// that is restored finds it so.
func (r Request) await(ctx context.Context, m hypervisor.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	ctx, died := context.WithCancelCause(ctx)
	defer died(nil)
	go func() { // ends with ctx
		select {
		case <-m.Done():
			died(fault.New(fault.Unavailable, "the machine has ended"))
		case <-ctx.Done():
		}
	}()
	if !r.Driver.Features().MuxedAgent {
		_, err := guest.NewClient(streams{m}).Hello(ctx)
		return err
	}
	conn, err := m.ConnectAgent(ctx)
	if err != nil {
		return err
	}
	if err := agentwire.Await(ctx, conn); err != nil {
		return errors.Join(err, conn.Close())
	}
	go func() { <-m.Done(); _ = conn.Close() }() // ends with the machine, for which attempt waits
	return nil
}

// streams is the dialer of a machine on which every connection is a stream.
type streams struct{ machine hypervisor.Machine }

// Dial implements guest.Dialer.
func (s streams) Dial(ctx context.Context) (net.Conn, error) { return s.machine.ConnectAgent(ctx) }

// end kills a machine and returns when it is gone.
func end(m hypervisor.Machine) error {
	if err := m.Signal(int(syscall.SIGKILL)); err != nil {
		return err
	}
	select {
	case <-m.Done():
		return nil
	case <-time.After(endDeadline):
		return fault.New(fault.Internal, "VMM %d does not end", m.PID())
	}
}

// describe writes the metadata, after everything else is on the disk.
func (r Request) describe(key, dir string, saved hypervisor.Saved) error {
	state, err := os.ReadFile(saved.State)
	if err != nil {
		return err
	}
	memory, err := os.OpenFile(saved.Memory, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()
	if err := memory.Sync(); err != nil {
		return err
	}
	info, err := memory.Stat()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(state)
	meta := Meta{
		Layout: layout, Key: key, Shape: r.Shape, Driver: r.Driver.Name(), CPUs: r.Spec.CPUs, Memory: r.Spec.Memory, Kernel: r.Kernel,
		Created: time.Now().UTC().Truncate(time.Second), StateSum: hex.EncodeToString(sum[:]), MemoryMTime: info.ModTime().UnixNano(),
		Disks: saved.Disks, Purpose: r.purpose(),
	}
	if err := r.describeDisk(dir, &meta); err != nil {
		return err
	}
	if meta.DiskSize > 0 {
		meta.Purpose += fmt.Sprintf(" disk %d", meta.DiskSize)
	}
	meta.Sum = meta.sum()
	return atomicfile.WriteJSON(filepath.Join(dir, metaFile), meta)
}

// publish gives a finished directory its name. One of that name that is there is as good, unless it cannot be used.
func (s *Store) publish(dir, key string) error {
	if _, err := s.Get(key); err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := atomicfile.RemoveDir(s.path(key)); err != nil {
		return err
	}
	return errors.Join(os.Rename(dir, s.path(key)), atomicfile.SyncDir(s.dir))
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards the field below
	text []byte
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if extra := len(t.text) - 500; extra > 0 {
		t.text = append(t.text[:0], t.text[extra:]...)
	}
	return len(p), nil
}

// String is what was kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(string(t.text), "?")
}
