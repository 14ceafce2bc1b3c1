package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/diskcopy"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/guestram"
	"banger/internal/hypervisor/qmp"
)

// A machine is saved directly where that is possible: QEMU writes the state of its devices, and its memory is read from
// outside (package guestram). A machine that was restored has only what it has written since as memory of its own; the
// rest is copied from the file that it maps, before it is stopped. The guest stands still while QEMU writes some 300 KB and
// its own pages are read into memory of this process, 5-30 ms; they are written to the file when it runs again.
//
// The migration of saveCopy does the same work page by page over a socket, for every page of the guest, used or not: 2.7
// s for a guest of 1 GiB under emulation. It is left for guests with more pages of their own than are worth holding, and
// for hosts that let nobody look into a process.

const (
	devicesFile = "devices" // in Spec.RunDir: the state of devices as QEMU writes it
	// maxHeld is how much of a guest that goes on is held in memory at once. Reading as much takes some 60 ms, in which the
	// guest stands still.
	maxHeld = 256 << 20
	// heldSlack is how much more a guest may have of its own when it is stopped than a moment before.
	heldSlack = 32 << 20
)

// errIndirect says that the machine has to be saved by migration. Nothing has been done then.
var errIndirect = errors.New("the machine cannot be saved directly")

// saveDirect saves a machine whose memory is its own.
func (m *Machine) saveDirect(ctx context.Context, to hypervisor.Saved, opt hypervisor.SaveOptions, copies *copies) (still time.Duration, err error) {
	ram, before, err := m.own(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errIndirect, err)
	}
	if n := guestram.Total(before); !opt.Stay && n > maxHeld {
		return 0, fmt.Errorf("%w: it has %d bytes of its own", errIndirect, n)
	}
	memory, err := m.copyBase(ctx, to.Memory)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	p := pages{ram: ram, file: memory, sparse: m.base == nil}
	if !opt.Stay {
		if err := p.hold(guestram.Total(before) + heldSlack); err != nil {
			return 0, err
		}
		defer p.release()
	}
	if err := copies.attach(ctx); err != nil {
		return 0, err
	}
	goOn, err := m.letGoOn(ctx, opt)
	if err != nil {
		return 0, err
	}
	if err := m.Pause(ctx); err != nil {
		return 0, err
	}
	devices, err := m.deviceState(ctx)
	if err == nil {
		err = p.take()
	}
	if err == nil {
		err = copies.still(ctx)
	}
	if err == nil && opt.Stay { // nobody else lets it go on when this fails
		err = writeNew(to.State, devices)
	}
	if still, err = goOn(err); err != nil || opt.Stay {
		return still, err
	}
	if err := p.write(); err != nil {
		return still, err
	}
	return still, writeNew(to.State, devices)
}

// own is where QEMU has the guest's memory, and which pages of it are no file's.
func (m *Machine) own(ctx context.Context) (guestram.RAM, []guestram.Range, error) {
	ram := guestram.RAM{PID: m.PID(), Size: m.spec.Memory}
	var text string
	args := map[string]any{"command-line": "gpa2hva 0"}
	if err := m.qmp.Execute(ctx, "human-monitor-command", args, &text); err != nil {
		return ram, nil, err
	}
	if n, err := fmt.Sscanf(text, "Host virtual address for 0x0 (ram) is 0x%x", &ram.Start); n != 1 || err != nil {
		return ram, nil, fmt.Errorf("QEMU does not say where the memory is: %.80q", text)
	}
	if m.base != nil {
		info, err := m.base.Stat()
		if err != nil {
			return ram, nil, err
		}
		ram.File = info
	}
	if err := ram.Check(); err != nil {
		return ram, nil, err
	}
	var probe [1]byte // whether the kernel lets us
	if err := ram.Peek(probe[:]); err != nil {
		return ram, nil, err
	}
	ranges, err := ram.Private()
	return ram, ranges, err
}

// copyBase makes the file of the memory, with what was there when the machine was restored.
func (m *Machine) copyBase(ctx context.Context, path string) (*os.File, error) {
	var err error
	if m.base != nil {
		_, err = diskcopy.From(ctx, m.base, path)
	} else {
		err = hole(path, int64(m.spec.Memory))
	}
	if err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// deviceState has QEMU write the state of its devices, and returns it as what an incoming migration understands.
func (m *Machine) deviceState(ctx context.Context) ([]byte, error) {
	path := filepath.Join(m.spec.RunDir, devicesFile)
	defer func() { _ = os.Remove(path) }()
	args := map[string]any{"filename": path, "live": false} // live would give the disks away, as to another machine
	if err := m.qmp.Execute(ctx, "xen-save-devices-state", args, nil); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err == nil && len(data) > maxState {
		err = fault.New(fault.Internal, "the saved state has more than %d bytes", maxState)
	}
	if err != nil {
		return nil, err
	}
	return migrationOf(data)
}

// Parts of a migration stream (QEMU's docs/devel/migration and migration/savevm.c).
var (
	streamHead = []byte("QEVM\x00\x00\x00\x03")
	// streamConfig says for which machine it is, and which capabilities its sender had: the one that the restore sets.
	streamConfig = slicesOf("\x07", counted32("microvm"),
		"\x05", counted8("configuration/capabilities"), be32(1), be32(1), counted8(capIgnoreShared))
	// streamEnd is the description of the state that QEMU looks for behind it: none.
	streamEnd = slicesOf("\x06", counted32("{}"))
)

func slicesOf(parts ...string) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		b.WriteString(p)
	}
	return b.Bytes()
}

func be32(n int) string { return string([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) }

func counted32(s string) string { return be32(len(s)) + s }

func counted8(s string) string { return string([]byte{byte(len(s))}) + s }

// migrationOf makes of the state of all devices the stream of a migration without memory.
func migrationOf(devices []byte) ([]byte, error) {
	body, ok := bytes.CutPrefix(devices, streamHead)
	if !ok {
		return nil, fault.New(fault.Internal, "QEMU has written a state of another form: %.20q", devices)
	}
	return slicesOf(string(streamHead), string(streamConfig), string(body), string(streamEnd)), nil
}

// writeNew writes a new file and syncs it.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// pages are those of a guest that are on their way to a file.
type pages struct {
	ram    guestram.RAM
	file   *os.File
	sparse bool // the file is empty so far: pages of zeroes need not be written
	held   []byte
	ranges []guestram.Range // what is in held
}

// hold makes room for that much, with pages that are there: the guest does not wait for them.
func (p *pages) hold(size uint64) (err error) {
	p.held, err = unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	return os.NewSyscallError("mmap", err)
}

func (p *pages) release() { _ = unix.Munmap(p.held) }

// take reads the pages of a guest that stands still: into memory, or to the file when none is held.
func (p *pages) take() (err error) {
	if p.ranges, err = p.ram.Private(); err != nil {
		return err
	}
	if p.held == nil {
		return p.ram.Copy(p.ranges, p.sink())
	}
	n := guestram.Total(p.ranges)
	if n > uint64(len(p.held)) {
		p.ranges = nil
		return fault.New(fault.Unavailable, "the guest writes to its memory faster than it can be saved")
	}
	return p.ram.Read(p.ranges, p.held[:n])
}

// write writes what was read to the file.
func (p *pages) write() error { return guestram.Write(p.ranges, p.held, p.sink()) }

func (p *pages) sink() io.WriterAt {
	if p.sparse {
		return withoutZeroes{p.file}
	}
	return p.file
}

// withoutZeroes writes to a file that has nothing but holes what is not zero.
type withoutZeroes struct{ to io.WriterAt }

// zeroes is a unit of what is left out.
var zeroes [4096]byte

// WriteAt implements io.WriterAt.
func (w withoutZeroes) WriteAt(b []byte, at int64) (int, error) {
	isZero := func(i int) bool {
		return bytes.Equal(b[i:min(i+len(zeroes), len(b))], zeroes[:min(len(zeroes), len(b)-i)])
	}
	for i := 0; i < len(b); {
		for i < len(b) && isZero(i) {
			i += len(zeroes)
		}
		from := i
		for i < len(b) && !isZero(i) {
			i += len(zeroes)
		}
		if from < len(b) {
			if _, err := w.to.WriteAt(b[from:min(i, len(b))], at+int64(from)); err != nil {
				return 0, err
			}
		}
	}
	return len(b), nil
}

// cannot reports whether QEMU does not know a command.
func cannot(err error) bool {
	var e *qmp.Error
	return errors.As(err, &e) && e.Class == "CommandNotFound"
}
