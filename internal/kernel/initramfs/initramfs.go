// Package initramfs makes the file system that a guest boots into: the agent as /init and the kernel modules that it
// loads first.
//
// It is not compressed: it has 2.6 MB, and under emulation the guest takes as long to unpack it as the VMM takes to
// load the difference (best of five boots under TCG, until /init: 0.92 s plain, 0.97 s gzip, 1.07 s zstd).
//
// A kernel may come with an initial RAM disk of the user's. Linux unpacks any number of archives one after another, and
// of two files of one name the later one stays: the user's goes first, so that /init is always the agent.
package initramfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/kernel"
	"banger/internal/kernel/cpio"
)

// Paths in the guest.
const (
	Init       = "/init"
	ModuleDir  = "/banger/ko"
	ModuleList = "/banger/modules" // the modules' paths in load order, one on each line
)

// layout changes when Build makes something else of the same input.
const layout = 3

// QEMU puts the archive at the very end of the guest's memory, beginning with a page. SeaBIOS, which is the firmware of
// QEMU's microvms but where a distribution has made qboot that, puts the ACPI tables at the end of the same memory
// before, where the archive then overwrites them: depending on its length and its last bytes the kernel hangs at "ACPI: Core
// revision" or does without the tables. An archive whose last page is nearly empty leaves them alone.
const (
	page  = 4096
	inEnd = 4 // bytes in the last page: they are no part of the archive
)

// Ensure returns the path of the initramfs for the kernel in kernelDir, whose manifest is m, and the given agent
// binary. It is made in cacheDir (which is created if need be) unless it is there already. Any number of callers, in
// any number of processes, may do so at once: each would write the same bytes, and they appear whole or not at all.
func Ensure(cacheDir, kernelDir string, m kernel.Manifest, agent []byte) (path string, err error) {
	path = filepath.Join(cacheDir, name(m, agent))
	switch _, err := os.Stat(path); {
	case err == nil:
		return path, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fault.Wrap(fault.Internal, err, "initramfs")
	}
	var modules []Module
	for _, name := range m.BootModules {
		data, err := os.ReadFile(filepath.Join(kernelDir, kernel.BootDir, name+".ko"))
		if err != nil {
			return "", damaged(err, m)
		}
		modules = append(modules, Module{Name: name, Data: data})
	}
	initrd, err := readInitrd(kernelDir, m)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cacheDir, 0o700); err != nil {
		return "", fault.Wrap(fault.Internal, err, "initramfs")
	}
	if err := atomicfile.Write(path, clearEnd(append(initrd, Build(agent, modules)...)), 0o600); err != nil {
		return "", fault.Wrap(fault.Internal, err, "initramfs")
	}
	return path, nil
}

// clearEnd fills an archive up with zeroes, which Linux skips, so that next to nothing of it is in its last page.
func clearEnd(data []byte) []byte {
	fill := (page - len(data)%page) % page
	return append(data, make([]byte, fill+inEnd)...)
}

// readInitrd returns the kernel's own initial RAM disk, filled up so that an archive can follow it.
func readInitrd(kernelDir string, m kernel.Manifest) ([]byte, error) {
	if !m.Initrd {
		return nil, nil
	}
	data, err := os.ReadFile(filepath.Join(kernelDir, kernel.InitrdFile))
	if err != nil {
		return nil, damaged(err, m)
	}
	data = append(data, 0, 0, 0, 0) // Linux finds the end of an LZ4 stream by a size of zero
	for len(data)%cpio.Align != 0 {
		data = append(data, 0)
	}
	return data, nil
}

// damaged is the fault for a kernel's directory that lacks a file.
func damaged(err error, m kernel.Manifest) error {
	f := fault.Wrap(fault.Conflict, err, "kernel %s is damaged", m.Name)
	if m.Origin == kernel.OriginImport {
		return f.WithHint("banger kernel import --force ... %s %s   # as it was imported", m.Name, m.Source)
	}
	return f.WithHint("banger kernel pull %s", m.Name)
}

// name tells one initramfs from any other: the same name means the same bytes.
func name(m kernel.Manifest, agent []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s %q %x", layout, m.Digest, m.BootModules, sha256.Sum256(agent))
	return hex.EncodeToString(h.Sum(nil)[:16]) + ".cpio"
}

// Module is a kernel module, not compressed.
type Module struct {
	Name string
	Data []byte
}

// Build returns the archive with the agent and the modules, which are in load order. The same input gives the same
// bytes.
func Build(agent []byte, modules []Module) []byte {
	var list []byte
	for _, m := range modules {
		list = append(list, ModuleDir+"/"+m.Name+".ko\n"...)
	}
	var a archive
	for _, dir := range []string{"dev", "proc", "sys", "banger", ModuleDir[1:]} {
		a.add(entry{name: dir, mode: modeDir | 0o755})
	}
	// The kernel opens it for init's standard streams before anything is mounted.
	a.add(entry{name: "dev/console", mode: modeChar | 0o600, major: 5, minor: 1})
	a.add(entry{name: Init[1:], mode: modeFile | 0o755, data: agent})
	a.add(entry{name: ModuleList[1:], mode: modeFile | 0o644, data: list})
	for _, m := range modules {
		a.add(entry{name: ModuleDir[1:] + "/" + m.Name + ".ko", mode: modeFile | 0o644, data: m.Data})
	}
	return a.finish()
}
