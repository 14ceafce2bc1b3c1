package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteReplacesAndLeavesNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	for v, write := range []func(string, any) error{WriteJSON, WriteJSON, WriteVolatileJSON, WriteVolatileJSON} {
		if err := write(path, v); err != nil {
			t.Fatal(err)
		}
		var got int
		if err := ReadJSON(path, &got); err != nil || got != v {
			t.Fatalf("got %d, %v; want %d", got, err, v)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left in the directory: %q", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestFailedWriteChangesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	if err := os.Mkdir(path, 0o700); err != nil { // a directory cannot be replaced by a file
		t.Fatal(err)
	}
	if err := Write(path, []byte("x"), 0o600); err == nil {
		t.Fatal("no error")
	}
	if err := WriteVolatileJSON(path, "x"); err == nil {
		t.Fatal("no error")
	}
	if got := names(t, dir); len(got) != 1 || got[0] != "taken" {
		t.Errorf("left in the directory: %q", got)
	}
	if err := Write(filepath.Join(dir, "no", "dir"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestRemoveDirFinishesAnEarlierRemoval(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "vm")
	for _, d := range []string{dir, filepath.Join(root, ".removed-vm")} {
		if err := os.MkdirAll(filepath.Join(d, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time there is nothing to remove
		if err := RemoveDir(dir); err != nil {
			t.Fatal(err)
		}
		if got := names(t, root); len(got) != 0 {
			t.Errorf("left: %q", got)
		}
	}
}
