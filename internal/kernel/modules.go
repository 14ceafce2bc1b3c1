package kernel

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/hostpkg"
)

// maxModule is the most that one module of the initramfs may have.
const maxModule = 64 << 20

// bootModules are what the agent needs to see its disks, its channel and its network, and to stack file systems, and
// what it is better off with. What they depend on comes with them. Each costs boot time: 5 to 35 ms under emulation.
func bootModules() (required, optional []string) {
	return []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "overlay"}, []string{"virtio_rng"}
}

// findDepmod looks where an ordinary user's PATH does not lead, too.
func findDepmod() (string, error) {
	for _, name := range []string{"depmod", "/usr/sbin/depmod", "/sbin/depmod"} {
		if file, err := exec.LookPath(name); err == nil {
			return file, nil
		}
	}
	return "", fault.New(fault.Unavailable, "the program depmod is not installed").WithHint("%s", hostpkg.InstallHint(hostpkg.Kmod))
}

// runDepmod writes modules.dep and the other indexes, which a package does not have: its installation makes them.
func runDepmod(ctx context.Context, depmod string, t tree) error {
	out, err := exec.CommandContext(ctx, depmod, "-b", t.base, t.version).CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "depmod: %.200s", strings.TrimSpace(string(out)))
	}
	return nil
}

// copyBootModules copies the modules of the initramfs, uncompressed, to the new directory dir and returns their names
// in load order.
func copyBootModules(modules, dir string) ([]string, error) {
	dep, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	required, optional := bootModules()
	files, err := loadOrder(string(dep), string(builtin), required, optional)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	var order []string
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(modules, filepath.FromSlash(file)))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "kernel has no module %s", moduleName(file))
		}
		if data, err = readModule(data); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "module %s", file)
		}
		name := moduleName(file)
		if err := atomicfile.Write(filepath.Join(dir, name+".ko"), data, 0o644); err != nil { // on the disk before it is published
			return nil, err
		}
		order = append(order, name)
	}
	return order, nil
}

// loadOrder returns the files of the wanted modules and of all they depend on, so that each comes after what it
// needs. Modules that are built in are left out; a required one that is missing is an error.
func loadOrder(dep, builtin string, required, optional []string) ([]string, error) {
	files, needs := parseDep(dep)
	seen := map[string]bool{}
	for line := range strings.Lines(builtin) {
		seen[moduleName(strings.TrimSpace(line))] = true
	}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		if files[name] == "" {
			return fault.New(fault.Invalid, "kernel has no module %s", name)
		}
		for _, n := range slices.Backward(needs[name]) { // depmod lists what is to be loaded first last
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, files[name])
		return nil
	}
	for _, name := range slices.Concat(required, optional) {
		if files[name] == "" && slices.Contains(optional, name) {
			continue
		}
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// parseDep parses modules.dep: the file of each module, and the names of those it needs.
func parseDep(dep string) (files map[string]string, needs map[string][]string) {
	files, needs = map[string]string{}, map[string][]string{}
	for line := range strings.Lines(dep) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || !filepath.IsLocal(file) {
			continue
		}
		name := moduleName(file)
		files[name] = file
		for f := range strings.FieldsSeq(rest) {
			needs[name] = append(needs[name], moduleName(f))
		}
	}
	return files, needs
}

// moduleName is the kernel's name of the module in a file: "kernel/net/core/net-failover.ko.xz" is net_failover.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// writeModulesImage makes a read-only disk of the modules tree, to be mounted at /lib/modules/<version> in the guest.
func writeModulesImage(ctx context.Context, t tree, dst string) error {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := writeTar(t, pw)
		pw.CloseWithError(err)
		done <- err
	}()
	_, err := ext4.FromTar(ctx, pr, dst, ext4.Options{Label: "banger-modules"})
	pr.CloseWithError(errors.New("disk image failed")) // ends the writer if there still is one
	if tarErr := <-done; err == nil {
		err = tarErr
	}
	return err
}

// writeTar writes the modules tree as root's, with the time of the kernel on everything: the same package gives the
// same bytes.
func writeTar(t tree, w io.Writer) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(t.modules, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(t.modules, file)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: filepath.ToSlash(name), Mode: 0o644, ModTime: t.time, Typeflag: tar.TypeReg}
		if d.IsDir() {
			h.Name, h.Mode, h.Typeflag = h.Name+"/", 0o755, tar.TypeDir
			return tw.WriteHeader(h)
		}
		return writeTarFile(tw, h, file)
	})
	return errors.Join(err, tw.Close())
}

func writeTarFile(tw *tar.Writer, h *tar.Header, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h.Size = info.Size()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}
