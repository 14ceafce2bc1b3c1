package guestram

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapped maps a file of this process privately, as a VMM does with a guest's memory.
func mapped(t *testing.T, size int) (RAM, []byte, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return RAM{PID: os.Getpid(), Start: uint64(uintptr(unsafe.Pointer(&mem[0]))), Size: uint64(size)}, mem, path
}

func TestPrivatePagesAreWhatWasWritten(t *testing.T) {
	const pages = 3000
	page := os.Getpagesize()
	ram, mem, path := mapped(t, pages*page)
	if err := ram.Check(); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < pages; i += 2 {
		_ = mem[i*page] // read only: stays the file's
	}
	written := 0
	for i := range pages {
		if i%3 == 0 || i > 2900 {
			mem[i*page+i%page] = byte(i)
			written++
		}
	}
	ranges, err := ram.Private()
	if err != nil {
		t.Fatal(err)
	}
	if got := Total(ranges); got != uint64(written*page) {
		t.Errorf("%d bytes are private, %d pages were written to", got, written)
	}
	if len(ranges) <= maxVectors/2 {
		t.Fatalf("%d ranges are too few for this test", len(ranges))
	}
	buf := make([]byte, Total(ranges))
	if err := ram.Read(ranges, buf); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(f *os.File) error{
		"read, then written": func(f *os.File) error { return Write(ranges, buf, f) },
		"copied":             func(f *os.File) error { return ram.Copy(ranges, f) },
	} {
		to := filepath.Join(t.TempDir(), "copy")
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(to, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(to, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := write(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if data, err = os.ReadFile(to); err != nil || !bytes.Equal(data, mem) {
			t.Errorf("%s: the file is not the memory (%v)", name, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	page := uint64(os.Getpagesize())
	ram, _, _ := mapped(t, int(8*page))
	longer := ram
	longer.Size = 1 << 40
	if err := longer.Check(); err == nil {
		t.Error("a mapping that is too short is taken")
	}
	if err := (RAM{PID: ram.PID, Start: page, Size: page}).Check(); err == nil {
		t.Error("an address without a mapping is taken")
	}
	odd := ram
	odd.Start++
	if _, err := odd.Private(); err == nil {
		t.Error("half a page is taken")
	}
	if err := ram.Read([]Range{{0, page}}, make([]byte, 1)); err == nil {
		t.Error("a buffer that is too short is taken")
	}
	nowhere := RAM{PID: ram.PID, Start: page, Size: page}
	if err := nowhere.Read([]Range{{0, page}}, make([]byte, page)); err == nil {
		t.Error("read from nowhere")
	}
	gone := RAM{PID: 1 << 30, Start: page, Size: page}
	if _, err := gone.Private(); err == nil {
		t.Error("pages of a process that is not there")
	}
}

func TestSplitAndCover(t *testing.T) {
	all := []Range{{0, 10}, {20, 5}, {40, 1}}
	for n, want := range map[uint64][2][]Range{
		0:  {{}, all},
		4:  {{{0, 4}}, {{4, 6}, {20, 5}, {40, 1}}},
		10: {{{0, 10}}, {{20, 5}, {40, 1}}},
		12: {{{0, 10}, {20, 2}}, {{22, 3}, {40, 1}}},
		16: {all, nil},
		99: {all, nil},
	} {
		first, rest := Split(all, n)
		if !slices.Equal(first, want[0]) || !slices.Equal(rest, want[1]) {
			t.Errorf("%d: %v, %v", n, first, rest)
		}
		if !Cover(all, first) || !Cover(all, rest) {
			t.Errorf("%d: the whole does not cover its parts", n)
		}
	}
	if !slices.Equal(all, []Range{{0, 10}, {20, 5}, {40, 1}}) {
		t.Errorf("it has changed: %v", all)
	}
	for _, not := range [][]Range{{{10, 1}}, {{9, 2}}, {{19, 3}}, {{24, 2}}, {{41, 1}}, {{0, 10}, {15, 1}}} {
		if Cover(all, not) {
			t.Errorf("%v is covered", not)
		}
	}
}

// What the kernel says of a process whose guest may have taken it over: names of mappings are the process's choice.
func FuzzMaps(f *testing.F) {
	f.Add("7f0000000000-7f0010000000 rw-p 00000000 fe:00 9986367    /tmp/memory\n", uint64(0x7f0000000000), uint64(0x10000000))
	f.Add("0-ffffffffffffffff r--p 0 00:00 0 \\012 7f0000000000-7f0010000000 rw-p\n\n- x", uint64(0), uint64(1<<63))
	f.Fuzz(func(t *testing.T, text string, start, size uint64) {
		if (RAM{Start: start, Size: size}).checkMaps(text) != nil {
			return
		}
		if size > 0 && start+size-1 < start {
			t.Errorf("%#x bytes at %#x are taken", size, start)
		}
	})
}

// Ranges are whole pages in order, none twice, and Split and Cover agree about them.
func FuzzPagemap(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0}, 5), uint64(3))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0xa0, 1}, uint64(0))
	f.Fuzz(func(t *testing.T, entries []byte, n uint64) {
		const page = 4096
		ranges := own(nil, entries, 0, page)
		end := uint64(0)
		for i, r := range ranges {
			if r.Length == 0 || r.Offset%page != 0 || r.Length%page != 0 || i > 0 && r.Offset <= end {
				t.Fatalf("%v", ranges)
			}
			end = r.Offset + r.Length
		}
		if end > uint64(len(entries)/pageEntry*page) {
			t.Fatalf("%v are more than %d pages", ranges, len(entries)/pageEntry)
		}
		n = n % 64 * page
		first, rest := Split(ranges, n)
		if Total(first)+Total(rest) != Total(ranges) || Total(first) > n || len(rest) > 0 && Total(first) < n || !Cover(ranges, first) || !Cover(ranges, rest) {
			t.Fatalf("%v at %d: %v, %v", ranges, n, first, rest)
		}
	})
}
