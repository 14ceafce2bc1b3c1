package diskcopy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"banger/internal/fault"
)

func TestCopyKeepsHoles(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	const size = 64<<20 + 123
	data := bytes.Repeat([]byte("banger"), 20000)
	if err := errors.Join(f.Truncate(size), errOf(f.WriteAt(data, 8<<20)), errOf(f.WriteAt(data, size-int64(len(data))))); err != nil {
		t.Fatal(err)
	}
	f.Close()
	res, err := Copy(t.Context(), src, dst)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(src)
	got, err := os.ReadFile(dst)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the copy differs: %d bytes, %v", len(got), err)
	}
	info, err := os.Stat(dst)
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy takes %d bytes, mode %v; %+v", used, info.Mode(), res)
	}
}

func errOf(_ int, err error) error { return err }

func TestCopyFailuresLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	if _, err := Copy(t.Context(), src, dst); !fault.Is(err, fault.Unavailable) {
		t.Errorf("no source: %v", err)
	}
	if err := os.WriteFile(src, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Copy(ctx, src, dst); err == nil {
		if _, err := os.Stat(dst); err != nil { // the file system shares blocks: there is nothing to cancel
			t.Error(err)
		}
	} else if _, err := os.Lstat(dst); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	if err := os.WriteFile(dst, []byte("mine"), 0o600); err == nil {
		if _, err := Copy(t.Context(), src, dst); err == nil {
			t.Error("replaced a file")
		}
		if text, err := os.ReadFile(dst); err != nil || len(text) == 0 {
			t.Errorf("a file that was there is gone: %q, %v", text, err)
		}
	}
}

// A source that gets shorter while it is copied is an error, and not a copy without end.
func TestCopyOfAFileThatShrinks(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, bytes.Repeat([]byte("x"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(dir, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if n, err := piece(in, out, 4096, 4096); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
}
