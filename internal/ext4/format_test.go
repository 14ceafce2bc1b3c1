package ext4

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/fault"
)

func TestFormatIsSmallAndReady(t *testing.T) {
	for _, tc := range []struct {
		name      string
		size      uint64
		used      uint64 // at most
		canGrowTo string
	}{
		{"smallest", 256 << 20, 1 << 20, "Reserved GDT blocks:      127"},
		{"default", 10 << 30, 3 << 20, "Reserved GDT blocks:      126"},
		{"large", 2 << 40, 40 << 20, "Reserved GDT blocks:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := Format(t.Context(), path, tc.size); err != nil {
				t.Fatal(err)
			}
			if tc.size <= 10<<30 {
				fsck(t, path)
			}
			used, err := Usage(path)
			if err != nil || used > tc.used {
				t.Errorf("used %d, err %v", used, err)
			}
			super := debugfs(t, path, "show_super_stats -h")
			for _, want := range []string{tc.canGrowTo, "resize_inode", "has_journal", "metadata_csum", "Reserved block count:     0"} {
				if !strings.Contains(super, want) {
					t.Errorf("no %q in\n%s", want, super)
				}
			}
			groups, err := exec.Command(tool(t, "dumpe2fs"), path).Output()
			if err != nil {
				t.Fatal(err)
			}
			all, done := bytes.Count(groups, []byte("\nGroup ")), bytes.Count(groups, []byte("ITABLE_ZEROED"))
			if all <= 1 || done < all-1 { // one of the lines is not of a group
				t.Errorf("%d of %d inode tables are marked zeroed: the guest would do the others", done, all)
			}
		})
	}
}

func TestFormatFailures(t *testing.T) {
	dir := t.TempDir()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		ctx   context.Context
		path  string
		size  uint64
		class fault.Class
	}{
		{"zero", t.Context(), filepath.Join(dir, "a"), 0, fault.Invalid},
		{"too large", t.Context(), filepath.Join(dir, "a"), 1 << 60, fault.Invalid},
		{"too small", t.Context(), filepath.Join(dir, "a"), 4096, fault.Invalid},
		{"cancelled", cancelled, filepath.Join(dir, "a"), 1 << 30, fault.Cancelled},
		{"taken", t.Context(), taken, 1 << 30, fault.Internal},
	} {
		if err := Format(tc.ctx, tc.path, tc.size); fault.ClassOf(err) != tc.class {
			t.Errorf("%s: %v (%s)", tc.name, err, fault.ClassOf(err))
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCopyFormattedSharesOneFormatting(t *testing.T) {
	cache, dir := filepath.Join(t.TempDir(), "cache"), t.TempDir()
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			errs[i] = CopyFormatted(t.Context(), cache, 1<<30, filepath.Join(dir, string(rune('a'+i))))
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	uuid := ""
	for i := range errs {
		path := filepath.Join(dir, string(rune('a'+i)))
		fsck(t, path)
		if used, err := Usage(path); err != nil || used > 2<<20 {
			t.Errorf("used %d, err %v", used, err)
		}
		super := debugfs(t, path, "show_super_stats -h")
		_, after, _ := strings.Cut(super, "UUID:")
		id, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
		if uuid != "" && id != uuid {
			t.Errorf("formatted more than once: %s, %s", uuid, id)
		}
		uuid = id
	}
	entries, err := os.ReadDir(cache)
	if err != nil || len(entries) != 2 { // the template and its lock
		t.Errorf("cache holds %v, err %v", entries, err)
	}
	if err := CopyFormatted(t.Context(), cache, 1<<30, filepath.Join(dir, "a")); err == nil {
		t.Error("an existing disk was overwritten")
	}
}

// TestCopyFormattedRepairs expects what a crash has left in the cache to be replaced.
func TestCopyFormattedRepairs(t *testing.T) {
	cache := t.TempDir()
	const size = 512 << 20
	for _, name := range []string{"ext4-v1-536870912.img", "ext4-v1-536870912.img.tmp"} {
		if err := os.WriteFile(filepath.Join(cache, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := CopyFormatted(t.Context(), cache, size, disk); err != nil {
		t.Fatal(err)
	}
	fsck(t, disk)
}

func BenchmarkCopyFormatted(b *testing.B) {
	cache, disk := b.TempDir(), filepath.Join(b.TempDir(), "disk")
	for b.Loop() {
		if err := CopyFormatted(b.Context(), cache, 10<<30, disk); err != nil {
			b.Fatal(err)
		}
		if err := os.Remove(disk); err != nil {
			b.Fatal(err)
		}
	}
}
