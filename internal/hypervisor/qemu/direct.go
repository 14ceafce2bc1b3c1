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
	"banger/internal/hostmem"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/guestram"
	"banger/internal/hypervisor/qmp"
)

// A machine is saved directly where that is possible: QEMU writes the state of its devices, and its memory is read from
// outside (package guestram). A machine that was restored has only what it has written since as memory of its own; the
// rest is copied from the file that it maps, before it is stopped. The guest stands still while QEMU writes some 300 KB and
// its own pages are read into memory of this process, 5-30 ms; they are written to the file when it runs again. Pages that
// there is no room for are written to the file before, and once more while the guest stands still: half a second for
// each GiB, most of it in the page cache.
//
// The migration of saveCopy does the same work page by page over a socket, for every page of the guest, used or not: 2.7
// s for a guest of 1 GiB under emulation. It is left for hosts that let nobody look into a process.

const (
	devicesFile = "devices" // in Spec.RunDir: the state of devices as QEMU writes it
	// maxHeld is how much of a guest that goes on is held in memory at once. Reading as much takes some 60 ms, in which the
	// guest stands still.
	maxHeld = 256 << 20
	// heldSlack is how much more a guest is thought to have of its own when it is stopped than a moment before.
	heldSlack = 32 << 20
	// heldShare is the part of the memory that the host has left which may be taken for it: 1/heldShare.
	heldShare = 4
)

// errIndirect says that the machine has to be saved by migration. Nothing has been done then.
var errIndirect = errors.New("the machine cannot be saved directly")

// saveDirect saves a machine whose memory is its own.
func (m *Machine) saveDirect(ctx context.Context, to hypervisor.Saved, opt hypervisor.SaveOptions, copies *copies) (still time.Duration, err error) {
	ram, err := m.own(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errIndirect, err)
	}
	memory, err := m.copyBase(ctx, to.Memory)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	p := pages{ram: ram, file: memory, sparse: m.base == nil}
	if !opt.Stay {
		defer p.release()
		if err := p.prepare(hostmem.Host{}.Available); err != nil {
			return 0, err
		}
	}
	if err := copies.attach(ctx); err != nil {
		return 0, err
	}
	goOn, err := m.letGoOn(ctx, opt)
	if err != nil {
		return 0, err
	}
	var devices []byte
	if err = m.Pause(ctx); err == nil { // else it may stand still all the same
		devices, err = m.deviceState(ctx)
	}
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

// own is where QEMU has the guest's memory.
func (m *Machine) own(ctx context.Context) (guestram.RAM, error) {
	ram := guestram.RAM{PID: m.PID(), Size: m.spec.Memory}
	var text string
	args := map[string]any{"command-line": "gpa2hva 0"}
	if err := m.qmp.Execute(ctx, "human-monitor-command", args, &text); err != nil {
		return ram, err
	}
	if n, err := fmt.Sscanf(text, "Host virtual address for 0x0 (ram) is 0x%x", &ram.Start); n != 1 || err != nil {
		return ram, fmt.Errorf("QEMU does not say where the memory is: %.80q", text)
	}
	if m.base != nil {
		info, err := m.base.Stat()
		if err != nil {
			return ram, err
		}
		ram.File = info
	}
	if err := ram.Check(); err != nil {
		return ram, err
	}
	var probe [1]byte // whether the kernel lets us
	if err := ram.Peek(probe[:]); err != nil {
		return ram, err
	}
	_, err := ram.Private() // likewise
	return ram, err
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
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0) // QEMU may have made anything of it
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
	early  []guestram.Range // what was written to the file while the guest ran
}

// prepare makes room for the pages of a guest that goes on, as far as the host has it, with memory that is there: the guest
// does not wait for it. What finds no room is written to the file now.
func (p *pages) prepare(available func() (hostmem.Free, error)) error {
	ranges, err := p.ram.Private()
	if err != nil {
		return err
	}
	room := min(guestram.Total(ranges), maxHeld) + heldSlack
	if free, err := available(); err == nil {
		room = min(room, free.Bytes/heldShare)
	}
	if room -= room % uint64(os.Getpagesize()); room > 0 {
		p.held, err = unix.Mmap(-1, 0, int(room), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil { // then without
			p.held = nil
		}
	}
	if _, p.early = guestram.Split(ranges, uint64(len(p.held))); len(p.early) == 0 {
		return nil
	}
	if err := p.ram.Copy(p.early, p.sink()); err != nil {
		return err
	}
	p.sparse = false // a page may be zero by the time that it is written again
	return nil
}

func (p *pages) release() {
	if p.held != nil {
		_ = unix.Munmap(p.held)
	}
}

// take reads the pages of a guest that stands still: into memory, and to the file what has no room there.
func (p *pages) take() error {
	ranges, err := p.ram.Private()
	if err != nil {
		return err
	}
	if !guestram.Cover(ranges, p.early) {
		return fault.New(fault.Internal, "QEMU has given back memory of its guest")
	}
	held, rest := guestram.Split(ranges, uint64(len(p.held)))
	if err := p.ram.Read(held, p.held[:guestram.Total(held)]); err != nil {
		return err
	}
	p.ranges = held
	return p.ram.Copy(rest, p.sink())
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
