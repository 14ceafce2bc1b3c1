// Package hostpkg knows which package of the host's distribution brings a program, for hints that can be run.
package hostpkg

import (
	"os"
	"os/exec"
	"strings"
)

// Program is something that banger needs on the host.
type Program string

// The programs.
const (
	QEMU       Program = "qemu-system-x86_64"
	Mmdebstrap Program = "mmdebstrap"
	E2fsprogs  Program = "mkfs.ext4"
	Kmod       Program = "depmod"
	UIDMap     Program = "newuidmap"
)

// manager is a package manager and what it calls the programs. A program that is not named is not packaged there.
type manager struct {
	command  string // looked for in PATH
	install  string
	packages map[Program]string
}

// managers is in the order of the search.
func managers() []manager {
	return []manager{
		{"apt-get", "apt-get install", map[Program]string{
			QEMU: "qemu-system-x86", Mmdebstrap: "mmdebstrap", E2fsprogs: "e2fsprogs", Kmod: "kmod", UIDMap: "uidmap",
		}},
		{"dnf", "dnf install", map[Program]string{
			QEMU: "qemu-system-x86", Mmdebstrap: "mmdebstrap", E2fsprogs: "e2fsprogs", Kmod: "kmod",
			UIDMap: "shadow-utils",
		}},
		{"pacman", "pacman -S", map[Program]string{
			QEMU: "qemu-system-x86", E2fsprogs: "e2fsprogs", Kmod: "kmod", UIDMap: "shadow",
		}},
		{"zypper", "zypper install", map[Program]string{
			QEMU: "qemu-x86", E2fsprogs: "e2fsprogs", Kmod: "kmod", UIDMap: "shadow",
		}},
	}
}

// Host is where to look. The zero value is the real one; tests give other values.
type Host struct {
	LookPath func(string) (string, error)
	UID      func() int
}

// InstallHint returns the command that installs what brings program, or "" when this host's package manager is
// unknown or does not have it.
func (h Host) InstallHint(program Program) string {
	if h.LookPath == nil {
		h.LookPath = exec.LookPath
	}
	if h.UID == nil {
		h.UID = os.Geteuid
	}
	for _, m := range managers() {
		if _, err := h.LookPath(m.command); err != nil {
			continue
		}
		if m.packages[program] == "" {
			return ""
		}
		words := []string{"sudo", m.install, m.packages[program]}
		if h.UID() == 0 {
			words = words[1:]
		}
		return strings.Join(words, " ")
	}
	return ""
}

// InstallHint is Host.InstallHint of the real host.
func InstallHint(program Program) string { return Host{}.InstallHint(program) }
