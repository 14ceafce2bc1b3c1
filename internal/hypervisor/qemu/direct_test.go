package qemu

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/hostmem"
	"banger/internal/hypervisor/guestram"
	"banger/internal/hypervisor/qmp"
)

func TestMigrationOf(t *testing.T) {
	stream, err := migrationOf([]byte("QEVM\x00\x00\x00\x03devices\x00"))
	if err != nil {
		t.Fatal(err)
	}
	want := "QEVM\x00\x00\x00\x03" +
		"\x07\x00\x00\x00\x07microvm" +
		"\x05\x1aconfiguration/capabilities\x00\x00\x00\x01\x00\x00\x00\x01\x0fx-ignore-shared" +
		"devices\x00" +
		"\x06\x00\x00\x00\x02{}"
	if string(stream) != want {
		t.Errorf("stream %q", stream)
	}
	for _, bad := range []string{"", "QEVM\x00\x00\x00\x02devices", "something else"} {
		if _, err := migrationOf([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a state", bad)
		}
	}
}

func TestZeroesAreNotWritten(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const unit = 4096
	data := make([]byte, 64*unit+100)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 65 {
		if rng.IntN(2) == 0 {
			data[min(i*unit+rng.IntN(unit), len(data)-1)] = 1
		}
	}
	const at = 3 * unit
	if n, err := (withoutZeroes{f}).WriteAt(data, at); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	if err := f.Truncate(at + int64(len(data))); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got[at:], data) || !bytes.Equal(got[:at], make([]byte, at)) {
		t.Errorf("the file has something else (%v)", err)
	}
	var count counter
	if _, err := (withoutZeroes{&count}).WriteAt(make([]byte, 10*unit), 0); err != nil || count != 0 {
		t.Errorf("%d bytes of zeroes are written, %v", count, err)
	}
}

type counter int

func (c *counter) WriteAt(b []byte, _ int64) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

func TestCannot(t *testing.T) {
	for err, want := range map[error]bool{
		&qmp.Error{Command: "x", Class: "CommandNotFound"}: true,
		&qmp.Error{Command: "x", Class: "GenericError"}:    false,
		errors.New("CommandNotFound"):                      false,
	} {
		if cannot(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}

// Whatever room the host has, and whatever the guest writes while it runs, the file is the memory when it was stopped.
func TestPagesAreThoseOfTheInstant(t *testing.T) {
	const size = 64 << 20
	for name, free := range map[string]func() (hostmem.Free, error){
		"much":    func() (hostmem.Free, error) { return hostmem.Free{Bytes: 1 << 40}, nil },
		"unknown": func() (hostmem.Free, error) { return hostmem.Free{}, errors.New("no idea") },
		"little":  func() (hostmem.Free, error) { return hostmem.Free{Bytes: heldShare * (20<<20 + 5)}, nil },
		"none":    func() (hostmem.Free, error) { return hostmem.Free{}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Munmap(mem) }()
			_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
			rng := rand.New(rand.NewPCG(3, 4))
			scribble := func(pages int) {
				for range pages {
					mem[rng.IntN(size)] = byte(rng.Uint32())
				}
			}
			scribble(12_000)
			file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if err := file.Truncate(size); err != nil {
				t.Fatal(err)
			}
			p := pages{ram: guestram.RAM{PID: os.Getpid(), Start: uint64(uintptr(unsafe.Pointer(&mem[0]))), Size: size}, file: file, sparse: true}
			defer p.release()
			if err := p.prepare(free); err != nil {
				t.Fatal(err)
			}
			if few := name == "little" || name == "none"; few != (len(p.early) > 0) || name == "little" && len(p.held) != 20<<20 {
				t.Errorf("%d bytes are held, %d were written early", len(p.held), guestram.Total(p.early))
			}
			scribble(4_000)
			for at := 0; at < size; at += 5 * 4096 { // pages that were written early are zero now
				clear(mem[at:min(at+4096, size)])
			}
			if err := p.take(); err != nil {
				t.Fatal(err)
			}
			want := bytes.Clone(mem)
			scribble(1_000) // it goes on
			if err := p.write(); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(file.Name()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file is not the memory, %v", err)
			}
		})
	}
}
