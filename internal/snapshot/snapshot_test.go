package snapshot

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/vmdir"
)

// take makes a snapshot with some files of which the memory is large and sparse.
func take(t *testing.T, s Set, name string, auto bool) Snapshot {
	t.Helper()
	dir, err := s.Begin(name)
	if err != nil {
		t.Fatal(err)
	}
	sparseFile(t, filepath.Join(dir, vmdir.SavedMemory), 64<<20, map[int64][]byte{0: []byte("start"), 5 << 20: []byte("middle")})
	sparseFile(t, filepath.Join(dir, vmdir.SavedDisk), 8<<20, map[int64][]byte{4096: []byte("disk")})
	if err := os.WriteFile(filepath.Join(dir, vmdir.SavedState), []byte("state"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := Measure(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := s.Publish(dir, Manifest{Name: name, Kind: Memory, Auto: auto, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func sparseFile(t *testing.T, path string, size int64, data map[int64][]byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = f.Truncate(size)
	for at, b := range data {
		_, writeErr := f.WriteAt(b, at)
		err = errors.Join(err, writeErr)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestCheckFindsEveryChange(t *testing.T) {
	write := func(at int64, b byte) func(string) error {
		return func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{b}, at)
			return errors.Join(err, f.Close())
		}
	}
	for name, tc := range map[string]struct {
		file  string
		spoil func(path string) error
		want  string
	}{
		"nothing":              {vmdir.SavedMemory, func(string) error { return nil }, ""},
		"a bit of data":        {vmdir.SavedMemory, write(5<<20, 'n'), "its file memory was changed"},
		"a byte in a hole":     {vmdir.SavedMemory, write(40<<20, 1), "its file memory was changed"},
		"a zero in a hole":     {vmdir.SavedMemory, write(40<<20, 0), ""},
		"a small file":         {vmdir.SavedState, write(1, 'x'), "its file state was changed"},
		"the disk":             {vmdir.SavedDisk, write(4097, 'x'), "its file disk.ext4 was changed"},
		"data taken away":      {vmdir.SavedDisk, func(p string) error { return errors.Join(os.Truncate(p, 0), os.Truncate(p, 8<<20)) }, "its file disk.ext4 was changed"},
		"a file cut short":     {vmdir.SavedDisk, func(p string) error { return os.Truncate(p, 1<<20) }, "its file disk.ext4 has 1048576 bytes and not"},
		"a file that is gone":  {vmdir.SavedState, os.Remove, "its file state is gone"},
		"a file that is a dir": {vmdir.SavedState, func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, "its file state"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Open(t.TempDir(), "dev")
			snap := take(t, s, "one", false)
			if err := tc.spoil(filepath.Join(snap.Dir, tc.file)); err != nil {
				t.Fatal(err)
			}
			err := snap.Check(t.Context(), false, nil)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v", err)
			}
			if err := snap.Check(t.Context(), true, nil); (err != nil) != (tc.want != "" && tc.file == vmdir.SavedDisk) {
				t.Errorf("the disk alone: %v", err)
			}
		})
	}
}

// The checksum does not depend on where a file has holes, and hears of what it reads.
func TestTheChecksumOfACopy(t *testing.T) {
	dir := t.TempDir()
	noise := make([]byte, 3<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise)
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	sparseFile(t, one, 16<<20, map[int64][]byte{7 << 20: noise, 15 << 20: make([]byte, 4096)})
	data, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(two, data, 0o600); err != nil { // without holes
		t.Fatal(err)
	}
	read := 0
	a, errA := sumOf(t.Context(), one, func(n int) { read += n })
	b, errB := sumOf(t.Context(), two, nil)
	if errors.Join(errA, errB) != nil || a != b || !strings.HasPrefix(a, "crc32c:") || read < len(noise) || read > 5<<20 {
		t.Errorf("%s, %s, %v; %d read", a, b, errors.Join(errA, errB), read)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sumOf(ctx, one, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestSetsAreWhatIsInTheirDirectories(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "snapshots"), "dev")
	if all, err := s.List(); err != nil || len(all) > 0 || s.Base() != "" {
		t.Fatalf("%v, %v", all, err)
	}
	for _, auto := range []bool{false, true, false, true} {
		name, err := s.FreeName(auto)
		if err != nil {
			t.Fatal(err)
		}
		take(t, s, name, auto)
	}
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, snap := range all {
		if snap.Problem != "" || snap.Used == 0 {
			t.Errorf("%+v", snap)
		}
		got = append(got, snap.Name+"<"+snap.Parent)
	}
	// All are of the same moment here, which the order of the names decides.
	if text := strings.Join(got, " "); text != "auto-1<snap-1 auto-2<snap-2 snap-1< snap-2<auto-1" {
		t.Errorf("%s", text)
	}
	if _, err := s.Get("snap-3"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "did you mean snap-1") {
		t.Errorf("%v", err)
	}
	if _, err := s.Begin("left"); err != nil {
		t.Fatal(err)
	}
	if left := s.Leftovers(); len(left) != 1 || !strings.HasPrefix(filepath.Base(left[0]), ".new-left.") {
		t.Errorf("%v", left)
	}
	if all, _ := s.List(); len(all) != 4 {
		t.Errorf("%v", all)
	}
	if err := os.WriteFile(s.path(baseFile), []byte(`{"snapshot": "../../etc"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.Base(); got != "" {
		t.Errorf("base %q", got)
	}
}

// A manifest may have been changed by anything.
func FuzzManifest(f *testing.F) {
	dir := f.TempDir()
	m := Manifest{Name: "one", Kind: Disk, Files: []File{{Name: vmdir.SavedDisk, Size: 1}}}
	if err := os.Mkdir(filepath.Join(dir, "one"), 0o700); err != nil {
		f.Fatal(err)
	}
	if err := m.write(filepath.Join(dir, "one")); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "one", manifestFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"layout": 1, "name": "../x", "files": [{"name": "/etc/passwd"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		sub := filepath.Join(t.TempDir(), "one")
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, manifestFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := readManifest(sub)
		if err == nil && (m.Name != "one" || !bytes.Contains(data, []byte(m.Sum))) {
			t.Errorf("%+v", m)
		}
	})
}
