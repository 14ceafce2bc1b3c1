package machine

import (
	"os"
	"path/filepath"
	"testing"
)

func TestResolveStaysBelowItsRoot(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"usr/lib", "etc", "a/b"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"lib": "usr/lib", "abs": "/usr/lib", "out": "../../../../../etc", "etc/resolv.conf": "../run/x/stub.conf", "loop": "loop",
		"chain": "/lib/../../abs", "a/b/up": "../..", "etc/nowhere": "/no/../where/",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/": "/", "": "/", "/etc/hosts": "/etc/hosts", "/lib/modules/6.1": "/usr/lib/modules/6.1", "/abs/x": "/usr/lib/x",
		"/out/passwd": "/etc/passwd", "/etc/resolv.conf": "/run/x/stub.conf", "/chain/y": "/usr/lib/y", "/a/b/up/etc": "/etc",
		"/etc/nowhere/z": "/where/z", "//etc/./../etc//": "/etc", "/..": "/",
	} {
		if got, err := resolve(root, path); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", path, got, err, want)
		}
	}
	for _, path := range []string{"/loop", "/file/x"} {
		if got, err := resolve(root, path); err == nil {
			t.Errorf("%s: %s, want an error", path, got)
		}
	}
}
