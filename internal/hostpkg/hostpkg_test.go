package hostpkg

import (
	"os/exec"
	"testing"
)

func TestInstallHint(t *testing.T) {
	for _, tc := range []struct {
		manager string
		uid     int
		program Program
		want    string
	}{
		{"apt-get", 1000, QEMU, "sudo apt-get install qemu-system-x86"},
		{"apt-get", 0, QEMU, "apt-get install qemu-system-x86"},
		{"dnf", 1000, QEMU, "sudo dnf install qemu-system-x86"},
		{"pacman", 1000, UIDMap, "sudo pacman -S shadow"},
		{"zypper", 1000, QEMU, "sudo zypper install qemu-x86"},
		{"zypper", 1000, Mmdebstrap, ""},
		{"emerge", 1000, QEMU, ""},
	} {
		host := Host{
			LookPath: func(name string) (string, error) {
				if name == tc.manager {
					return "/usr/bin/" + name, nil
				}
				return "", exec.ErrNotFound
			},
			UID: func() int { return tc.uid },
		}
		if got := host.InstallHint(tc.program); got != tc.want {
			t.Errorf("%s, uid %d, %s: %q, want %q", tc.manager, tc.uid, tc.program, got, tc.want)
		}
	}
}
