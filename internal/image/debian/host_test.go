package debian

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"banger/internal/fault"
	"banger/internal/image/source"
)

func TestHostCheck(t *testing.T) {
	ids := map[string]string{"etc/subuid": "other:1:5\nuser:100000:65536\n", "etc/subgid": "user:100000:65536\n"}
	with := func(extra map[string]string) map[string]string {
		out := map[string]string{}
		for _, m := range []map[string]string{ids, extra} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	found := func(name string) (string, error) { return "/usr/bin/" + name, nil }
	missing := func(string) (string, error) { return "", errors.New("not found") }
	const apparmor = "proc/sys/kernel/apparmor_restrict_unprivileged_userns"
	for name, tc := range map[string]struct {
		host  host
		files map[string]string
		want  string // in the error; empty: none
		hint  string
	}{
		"root":               {host: host{root: true, canMount: true}},
		"root in a jail":     {host: host{root: true}, want: "CAP_SYS_ADMIN", hint: "ordinary user"},
		"user":               {host: host{lookPath: found}, files: ids},
		"no newuidmap":       {host: host{lookPath: missing}, files: ids, want: "newuidmap"},
		"no subordinate ids": {host: host{lookPath: found}, want: "/etc/subuid", hint: "sudo usermod --add-subuids"},
		"short range": {
			host: host{lookPath: found}, files: with(map[string]string{"etc/subgid": "user:1:10\n"}), want: "/etc/subgid",
			hint: "usermod",
		},
		"clone forbidden": {
			host: host{lookPath: found}, files: with(map[string]string{"proc/sys/kernel/unprivileged_userns_clone": "0\n"}),
			want: "user namespaces", hint: "sudo sysctl -w kernel.unprivileged_userns_clone=1",
		},
		"none allowed": {
			host: host{lookPath: found}, files: with(map[string]string{"proc/sys/user/max_user_namespaces": "0\n"}),
			want: "user namespaces", hint: "sudo sysctl -w user.max_user_namespaces",
		},
		"AppArmor": {
			host: host{lookPath: found}, files: with(map[string]string{apparmor: "1\n"}), want: "AppArmor",
			hint: "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
		},
		"AppArmor with a profile": {
			host: host{lookPath: found}, files: with(map[string]string{apparmor: "1\n", "etc/apparmor.d/mmdebstrap": ""}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.host.fs, tc.host.user = t.TempDir(), "user"
			for file, text := range tc.files {
				path := filepath.Join(tc.host.fs, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := tc.host.check()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), tc.want) ||
				!strings.Contains(fault.HintOf(err), tc.hint) {
				t.Errorf("err = %v, hint %q", err, fault.HintOf(err))
			}
		})
	}
}

func TestScratch(t *testing.T) {
	staging := filepath.Join(t.TempDir(), "image-1")
	for range 2 { // and again after a removal
		if err := os.MkdirAll(staging, 0o700); err != nil {
			t.Fatal(err)
		}
		dir, err := makeScratch(staging, false)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(dir, staging) {
			t.Errorf("%s cannot be reached by subordinate ids", dir)
		}
		if err := os.MkdirAll(filepath.Join(dir, "mmdebstrap.X/etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := (Source{}).Remove(t.Context(), staging); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", dir)
		}
		if left, _ := os.ReadDir(staging); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// TestFetchOnAFullDisk expects a build that cannot succeed not to be started.
func TestFetchOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	staging := t.TempDir()
	if err := syscall.Mount("tmpfs", staging, "tmpfs", 0, "size=10m"); err != nil {
		t.Skip("this root user may not mount: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(staging, 0); err != nil {
			t.Error(err)
		}
	})
	req := source.Request{Location: "bookworm", Arch: runtime.GOARCH, Staging: staging}
	_, err := Source{Program: "/bin/false", HostRoot: t.TempDir()}.Fetch(t.Context(), req)
	if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "500M needed") {
		t.Errorf("err = %v", err)
	}
	if err := (Source{}).Remove(t.Context(), staging); err != nil {
		t.Error(err)
	}
}

func TestFetchWhatThisHostCannot(t *testing.T) {
	req := source.Request{Location: "bookworm", Arch: "s390x", Staging: t.TempDir()}
	for _, s := range []Source{{Program: "/bin/false"}, {Program: filepath.Join(t.TempDir(), "mmdebstrap")}} {
		_, err := s.Fetch(t.Context(), req)
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", s.Program, err)
		}
	}
}

// TestRemoveRefusesForeignDirectories has a link in the staging directory that makeScratch did not make.
func TestRemoveRefusesForeignDirectories(t *testing.T) {
	staging, victim := t.TempDir(), t.TempDir()
	if err := os.Symlink(victim, filepath.Join(staging, scratchLink)); err != nil {
		t.Fatal(err)
	}
	if err := (Source{}).Remove(t.Context(), staging); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(victim); err != nil {
		t.Error(err)
	}
}
