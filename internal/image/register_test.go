package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/source"
)

// makeExt4 makes an ext4 file system of the test's tree.
func makeExt4(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.ext4")
	if _, err := ext4.FromTar(t.Context(), strings.NewReader(string(tree(t))), path, ext4.Options{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRegisterPointsToAFileSystem(t *testing.T) {
	path, staging := makeExt4(t), t.TempDir()
	dir, m, err := Register(t.Context(), Registration{Staging: staging, Name: "mine", Rootfs: path, Kernel: "k", Config: source.Config{User: "me"}})
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir)
	if err != nil || loaded.Rootfs(dir) != path || loaded.Digest != m.Digest || loaded.Kernel != "k" || loaded.Config.User != "me" || loaded.Name != "mine" {
		t.Errorf("%+v, %v", loaded, err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("in the directory: %v", files)
	}
	if err := loaded.CheckExternal(); err != nil {
		t.Error(err)
	}
	if err := os.Truncate(path, 9<<20); err != nil {
		t.Fatal(err)
	}
	if err := loaded.CheckExternal(); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "has changed since") || fault.HintOf(err) == "" {
		t.Error(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := loaded.CheckExternal(); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "is gone") || fault.HintOf(err) != "banger image rm mine" {
		t.Error(err)
	}
	if err := RemoveStaged(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

func TestRegisterConvertsATarFile(t *testing.T) {
	path, staging := filepath.Join(t.TempDir(), "root.tar"), t.TempDir()
	if err := os.WriteFile(path, tree(t), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, m, err := Register(t.Context(), Registration{Staging: staging, Name: "mine", Rootfs: path})
	if err != nil {
		t.Fatal(err)
	}
	if m.External != nil || m.Size != ext4.DefaultSize || m.Entries == 0 || m.Rootfs(dir) != Rootfs(dir) || m.Digest == "" {
		t.Errorf("%+v", m)
	}
	if left, _ := os.ReadDir(staging); len(left) != 1 {
		t.Errorf("staging: %v", left)
	}
	if err := m.CheckExternal(); err != nil {
		t.Error(err)
	}
}

// The same file with another kernel or configuration is another image: who registers it again means that.
func TestRegisterTellsImagesOfOneFileApart(t *testing.T) {
	tarFile := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(tarFile, tree(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"file system": makeExt4(t), "tar": tarFile} {
		t.Run(name, func(t *testing.T) {
			seen := map[string]string{}
			for what, r := range map[string]Registration{
				"plain": {Kernel: "k"}, "kernel": {Kernel: "k2"}, "config": {Kernel: "k", Config: source.Config{User: "me"}},
			} {
				r.Staging, r.Name, r.Rootfs = t.TempDir(), "mine", path
				_, m, err := Register(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				_, again, err := Register(t.Context(), r)
				if err != nil || again.Digest != m.Digest {
					t.Errorf("%s: %s is not %s, %v", what, again.Digest, m.Digest, err)
				}
				if other := seen[m.Digest]; other != "" {
					t.Errorf("%s is the same image as %s", what, other)
				}
				seen[m.Digest] = what
			}
		})
	}
}

func TestRegisterRefuses(t *testing.T) {
	spoiled := func(at int64, data string) string {
		path := makeExt4(t)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte(data), at)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	short := makeExt4(t)
	if err := os.Truncate(short, 5000); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("hello ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	dirty, odd := spoiled(1024+0x60, "\xc6\x02\x00\x00"), spoiled(1024+0x18, "\xff\xff")
	for name, tt := range map[string]struct {
		path, want string
		class      fault.Class
	}{
		"missing":         {"/nonexistent/root.ext4", "register x: there is no file /nonexistent/root.ext4", fault.NotFound},
		"relative":        {"root.ext4", `register x: "root.ext4" is not an absolute path`, fault.Invalid},
		"directory":       {t.TempDir(), "is not a file", fault.Invalid},
		"cut off":         {short, "is cut off: its file system has", fault.Invalid},
		"not unmounted":   {dirty, "register x: " + dirty + " was not unmounted: its journal has to be played back first", fault.Conflict},
		"odd block size":  {odd, "register x: " + odd + " is damaged: its blocks have an impossible size", fault.Invalid},
		"something else":  {text, "register x: " + text + " is neither an ext4 file system nor a tar file of one", fault.Invalid},
		"character stuff": {"/dev/null", "register x: /dev/null is not a file", fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			staging := t.TempDir()
			_, _, err := Register(t.Context(), Registration{Staging: staging, Name: "x", Rootfs: tt.path})
			if !fault.Is(err, tt.class) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", fault.ClassOf(err), err)
			}
			if left, _ := os.ReadDir(staging); len(left) > 0 {
				t.Errorf("staging: %v", left)
			}
		})
	}
}

func TestRegisterCancelled(t *testing.T) {
	path, staging := filepath.Join(t.TempDir(), "root.tar"), t.TempDir()
	if err := os.WriteFile(path, tree(t), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Register(ctx, Registration{Staging: staging, Name: "x", Rootfs: path}); !fault.Is(err, fault.Cancelled) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(staging); len(left) > 0 {
		t.Errorf("staging: %v", left)
	}
}
