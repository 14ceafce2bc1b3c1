package initramfs

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/kernel"
)

func modules() []Module {
	return []Module{{"b_c", []byte("BBB")}, {"a", []byte("AAAA")}}
}

// testdata/small.golden is the archive with a line break before each header and dots for NULs, to be read by people.
func TestBuildGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/small.golden")
	if err != nil {
		t.Fatal(err)
	}
	got := Build([]byte("agent"), modules())
	readable := bytes.ReplaceAll(bytes.ReplaceAll(got, []byte{0}, []byte(".")), []byte("070701"), []byte("\n070701"))
	if diff := cmp.Diff(string(want), string(readable)+"\n"); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// file is an entry as the kernel would read it.
type file struct {
	Name         string
	Mode         uint64
	Major, Minor uint64
	Data         string
}

// read parses an archive and checks its structure.
func read(t *testing.T, data []byte) []file {
	t.Helper()
	var out []file
	inodes := map[uint64]bool{}
	for offset := 0; ; {
		header := data[offset : offset+110]
		if string(header[:6]) != "070701" {
			t.Fatalf("no header at %d", offset)
		}
		field := func(i int) uint64 {
			n, err := strconv.ParseUint(string(header[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		name := data[offset+110 : offset+110+int(field(11))]
		if name[len(name)-1] != 0 {
			t.Fatalf("name %q has no end", name)
		}
		start := (offset + 110 + len(name) + 3) &^ 3
		f := file{string(name[:len(name)-1]), field(1), field(9), field(10), string(data[start : start+int(field(6))])}
		offset = (start + len(f.Data) + 3) &^ 3
		if f.Name == "TRAILER!!!" {
			if offset != len(data) {
				t.Errorf("%d bytes after the end", len(data)-offset)
			}
			return out
		}
		if inodes[field(0)] {
			t.Errorf("%s shares its inode with another file", f.Name)
		}
		inodes[field(0)] = true
		out = append(out, f)
	}
}

func TestBuildHoldsWhatTheAgentNeeds(t *testing.T) {
	want := []file{
		{Name: "dev", Mode: 0o040755},
		{Name: "proc", Mode: 0o040755},
		{Name: "sys", Mode: 0o040755},
		{Name: "banger", Mode: 0o040755},
		{Name: "banger/ko", Mode: 0o040755},
		{Name: "dev/console", Mode: 0o020600, Major: 5, Minor: 1},
		{Name: "init", Mode: 0o100755, Data: "agent"},
		{Name: "banger/modules", Mode: 0o100644, Data: "/banger/ko/b_c.ko\n/banger/ko/a.ko\n"},
		{Name: "banger/ko/b_c.ko", Mode: 0o100644, Data: "BBB"},
		{Name: "banger/ko/a.ko", Mode: 0o100644, Data: "AAAA"},
	}
	if diff := cmp.Diff(want, read(t, Build([]byte("agent"), modules()))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// kernelDir is a kernel with the test's modules.
func kernelDir(t *testing.T) (string, kernel.Manifest) {
	t.Helper()
	dir := t.TempDir()
	m := kernel.Manifest{Name: "k", Digest: "sha256:12"}
	if err := os.Mkdir(filepath.Join(dir, kernel.BootDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, module := range modules() {
		m.BootModules = append(m.BootModules, module.Name)
		if err := os.WriteFile(filepath.Join(dir, kernel.BootDir, module.Name+".ko"), module.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, m
}

func TestEnsureByManyCallers(t *testing.T) {
	dir, m := kernelDir(t)
	cache := filepath.Join(t.TempDir(), "not", "there", "yet")
	paths := make([]string, 16)
	var wg sync.WaitGroup
	for i := range paths {
		wg.Go(func() {
			path, err := Ensure(cache, dir, m, []byte("agent"))
			if err != nil {
				t.Error(err)
				return
			}
			paths[i] = path
			if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, clearEnd(Build([]byte("agent"), modules()))) {
				t.Errorf("%d bytes, %v", len(data), err)
			}
		})
	}
	wg.Wait()
	for _, path := range paths {
		if path != paths[0] {
			t.Errorf("%s and %s", path, paths[0])
		}
	}
	if entries, err := os.ReadDir(cache); err != nil || len(entries) != 1 {
		t.Errorf("in the cache: %v, %v", entries, err)
	}
}

func TestEnsureKeepsDifferentInputsApart(t *testing.T) {
	dir, m := kernelDir(t)
	cache := t.TempDir()
	other, fewer := m, m
	other.Digest = "sha256:34"
	fewer.BootModules = m.BootModules[:1]
	seen := map[string]bool{}
	for _, tc := range []struct {
		m     kernel.Manifest
		agent string
	}{{m, "agent"}, {m, "agent 2"}, {other, "agent"}, {fewer, "agent"}} {
		path, err := Ensure(cache, dir, tc.m, []byte(tc.agent))
		if err != nil {
			t.Fatal(err)
		}
		seen[path] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d files for 4 inputs", len(seen))
	}
}

// A kernel's own RAM disk comes first, then the four zeros by which Linux finds the end of an LZ4 stream, filled up to
// where it looks for the next archive.
func TestEnsurePutsTheKernelsOwnFirst(t *testing.T) {
	dir, m := kernelDir(t)
	m.Initrd, m.Digest = true, "sha256:56"
	if err := os.WriteFile(filepath.Join(dir, kernel.InitrdFile), []byte("users"), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := Ensure(t.TempDir(), dir, m, []byte("agent"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	want := append([]byte("users\x00\x00\x00\x00\x00\x00\x00"), Build([]byte("agent"), modules())...)
	if err != nil || !bytes.Equal(data[:min(len(data), len(want))], want) || len(bytes.Trim(data[len(want):], "\x00")) > 0 {
		t.Errorf("%d bytes, %v, want %d", len(data), err, len(want))
	}
}

func TestEnsureWithoutTheKernelsOwn(t *testing.T) {
	dir, m := kernelDir(t)
	m.Initrd, m.Origin, m.Source = true, kernel.OriginImport, "/boot/vmlinuz"
	_, err := Ensure(t.TempDir(), dir, m, []byte("agent"))
	if !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger kernel import --force ... k /boot/vmlinuz   # as it was imported" {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
}

func TestEnsureOfADamagedKernel(t *testing.T) {
	dir, m := kernelDir(t)
	if err := os.Remove(filepath.Join(dir, kernel.BootDir, "a.ko")); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	_, err := Ensure(cache, dir, m, []byte("agent"))
	if !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger kernel pull k" {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
	if entries, err := os.ReadDir(cache); err != nil || len(entries) != 0 {
		t.Errorf("in the cache: %v, %v", entries, err)
	}
}

// The end of the guest's memory, in the same page as the end of the archive, belongs to the firmware.
func TestTheLastPageIsNearlyEmpty(t *testing.T) {
	for _, size := range []int{0, 1, 4, 4092, 4093, 4095, 4096, 4097, 3925496, 5881664} {
		data := clearEnd(bytes.Repeat([]byte{7}, size))
		if len(data)%4096 != 4 || len(data) < size+4 || len(data) > size+4100 || len(bytes.TrimRight(data, "\x00")) != size {
			t.Errorf("%d bytes become %d", size, len(data))
		}
	}
	dir, m := kernelDir(t)
	path, err := Ensure(t.TempDir(), dir, m, []byte("agent"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size()%4096 != 4 {
		t.Errorf("%v, %v", info.Size(), err)
	}
}
