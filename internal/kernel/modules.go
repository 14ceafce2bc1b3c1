package kernel

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/hostpkg"
)

// maxModule is the most that one module of the initramfs may have.
const maxModule = 64 << 20

// findDepmod looks where an ordinary user's PATH does not lead, too.
func findDepmod() (string, error) {
	for _, name := range []string{"depmod", "/usr/sbin/depmod", "/sbin/depmod"} {
		if file, err := exec.LookPath(name); err == nil {
			return file, nil
		}
	}
	return "", fault.New(fault.Unavailable, "the program depmod is not installed").WithHint("%s", hostpkg.InstallHint(hostpkg.Kmod))
}

// runDepmod writes modules.dep and the other indexes, which a package does not have: its installation makes them. A
// depmod whose parent is killed ends with it, so that it does not write into a directory that is being removed.
func runDepmod(ctx context.Context, depmod string, t tree) error {
	runtime.LockOSThread() // the death signal comes when the thread that started the child ends
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, depmod, "-b", t.base, t.version)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "depmod: %.200s", strings.TrimSpace(string(out)))
	}
	return checkIndexed(t)
}

// checkIndexed makes sure that depmod found modules where there are some: one that does not know their compression says
// nothing of them.
func checkIndexed(t tree) error {
	info, err := os.Stat(filepath.Join(t.modules, "modules.dep"))
	if err != nil || info.Size() > 0 {
		return err
	}
	found := ""
	err = filepath.WalkDir(t.modules, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && isModule(path) {
			found, err = filepath.Base(path), fs.SkipAll
		}
		return err
	})
	if err == nil && found != "" {
		err = fault.New(fault.Unavailable, "depmod of this host does not know the compression of modules like %s", found).
			WithHint("depmod --version")
	}
	return err
}

// index is what the files of a modules directory say about its modules, by the names that the kernel gives them.
type index struct {
	files   map[string]string   // below the directory
	needs   map[string][]string // other modules, the one to be loaded first last
	soft    map[string][]string // names or aliases of what should be loaded before
	aliases map[string][]string // modules that have another, fixed name
	builtin map[string]bool     // in the kernel itself; nil: not known
}

// readIndex reads the indexes in a modules directory. Only modules.dep has to be there.
func readIndex(dir string) (index, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return index{}, fault.Wrap(fault.Invalid, err, "modules")
	}
	ix := parseDep(string(dep))
	optional := func(name string) (string, error) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return string(data), err
	}
	builtin, err := optional("modules.builtin")
	if err != nil {
		return index{}, err
	}
	ix.addBuiltin(builtin)
	for name, add := range map[string]func(string){"modules.softdep": ix.addSoft, "modules.alias": ix.addAliases} {
		text, err := optional(name)
		if err != nil {
			return index{}, err
		}
		add(text)
	}
	return ix, nil
}

// parseDep parses modules.dep: the file of each module, and the names of those it needs.
func parseDep(dep string) index {
	ix := index{files: map[string]string{}, needs: map[string][]string{}, soft: map[string][]string{}, aliases: map[string][]string{}}
	for line := range strings.Lines(dep) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || !filepath.IsLocal(file) {
			continue
		}
		name := moduleName(file)
		if name == "" {
			continue
		}
		ix.files[name] = file
		for f := range strings.FieldsSeq(rest) {
			ix.needs[name] = append(ix.needs[name], moduleName(f))
		}
	}
	return ix
}

// addBuiltin parses modules.builtin: the files that modules would have.
func (ix *index) addBuiltin(text string) {
	for line := range strings.Lines(text) {
		if ix.builtin == nil {
			ix.builtin = map[string]bool{}
		}
		ix.builtin[moduleName(strings.TrimSpace(line))] = true
	}
}

// addSoft parses modules.softdep: "softdep ext4 pre: crc32c post: x".
func (ix *index) addSoft(text string) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "softdep" {
			continue
		}
		before := false
		for _, word := range words[2:] {
			if strings.HasSuffix(word, ":") {
				before = word == "pre:"
			} else if name := moduleName(words[1]); before {
				ix.soft[name] = append(ix.soft[name], word)
			}
		}
	}
}

// addAliases parses modules.alias, of which only the aliases without wildcards can be asked for by a module.
func (ix *index) addAliases(text string) {
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) == 3 && words[0] == "alias" && !strings.ContainsAny(words[1], "*?[") {
			ix.aliases[words[1]] = append(ix.aliases[words[1]], moduleName(words[2]))
		}
	}
}

// resolve returns the module that a soft dependency means, or "". Of several that do the same, the one that needs no
// special processor is taken.
func (ix *index) resolve(word string) string {
	if name := moduleName(word); ix.files[name] != "" || ix.builtin[name] {
		return name
	}
	for _, name := range ix.aliases[word] {
		if strings.HasSuffix(name, "_generic") && ix.files[name] != "" {
			return name
		}
	}
	for _, name := range ix.aliases[word] {
		if ix.files[name] != "" {
			return name
		}
	}
	return ""
}

// loadOrder returns the files of the wanted modules and of all they depend on, so that each comes after what it
// needs. Modules that are built in are left out.
func (ix *index) loadOrder(wanted []string) ([]string, error) {
	seen := map[string]bool{}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		if seen[name] || ix.builtin[name] {
			return nil
		}
		seen[name] = true
		if ix.files[name] == "" {
			return fault.New(fault.Invalid, "kernel has no module %s", name)
		}
		before := slices.Clone(ix.needs[name])
		for _, word := range ix.soft[name] { // a module works without them, perhaps
			if soft := ix.resolve(word); soft != "" {
				before = append(before, soft)
			}
		}
		for _, n := range slices.Backward(before) { // depmod lists what is to be loaded first last
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, ix.files[name])
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName is the kernel's name of the module in a file: "kernel/net/core/net-failover.ko.xz" is net_failover.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// copyBootModules copies the modules of the initramfs from a modules directory, uncompressed, to the new directory dst
// and returns their names in load order.
func copyBootModules(modules string, files []string, release, dst string) ([]string, error) {
	if err := os.Mkdir(dst, 0o755); err != nil {
		return nil, err
	}
	var order []string
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(modules, filepath.FromSlash(file)))
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "kernel has no module %s", moduleName(file))
		}
		if data, err = readModule(data); err == nil {
			err = checkRelease(data, release)
		}
		if err != nil {
			return nil, fault.Context(err, "module %s", file)
		}
		name := moduleName(file)
		if err := atomicfile.Write(filepath.Join(dst, name+".ko"), data, 0o644); err != nil { // on the disk before it is published
			return nil, err
		}
		order = append(order, name)
	}
	return order, nil
}

// checkRelease refuses a module that says that it is for another kernel: its modinfo has "vermagic=RELEASE ...". An
// empty release accepts all.
func checkRelease(module []byte, release string) error {
	_, text, ok := bytes.Cut(module, []byte("\x00vermagic="))
	if !ok || release == "" {
		return nil
	}
	if of, _, _ := strings.Cut(string(text[:min(len(text), 200)]), " "); of != release {
		return fault.New(fault.Invalid, "it is for Linux %s, the kernel is %s", of, release)
	}
	return nil
}
