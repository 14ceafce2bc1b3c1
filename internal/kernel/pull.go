// Package kernel gets guest kernels from a distribution's signed archive and lays them out for a VMM.
//
// The package archive is verified as internal/debarchive describes. What is in the package is then taken apart in Go,
// without root: the VMM loads the uncompressed kernel (which boots faster than one that unpacks itself), the whole tree
// of modules becomes one read-only disk image for modprobe in the guest, and the few modules that the guest needs
// before it can see that disk are kept as files, for the initramfs.
//
// Publishing the result (rename to its final place, row in the database) is the daemon's job.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/debarchive"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/progress"
)

// stage is what every progress update of Pull carries.
const stage = "kernel"

// PullOptions of Pull. Only Staging is required.
type PullOptions struct {
	Staging  string        // existing directory for the new kernel, on the file system that it will be published to
	Arch     string        // Debian's name; empty: this host's
	Mirror   string        // base URI of the archive (config key mirror.debian); empty: the host's apt configuration
	Keyring  string        // file of the archive's keys; empty: the one that the source names, else Debian's
	HostRoot string        // where the host's apt configuration is found; empty: /
	Stall    time.Duration // how long the mirror may send nothing; 0: debarchive.DefaultStall
	Progress progress.Func // stage "kernel"
}

// Pull downloads the newest kernel of e, verifies and unpacks it. It returns the path of a new directory below
// opt.Staging, for the caller to publish or remove, and what it holds. On failure nothing is left there.
func Pull(ctx context.Context, e Entry, opt PullOptions) (stagedDir string, m Manifest, err error) {
	if opt.Arch == "" {
		opt.Arch = runtime.GOARCH // Debian and Go have the same names for those that banger runs on
	}
	depmod, err := findDepmod()
	if err != nil {
		return "", Manifest{}, err
	}
	dir, err := os.MkdirTemp(opt.Staging, "kernel-*")
	if err != nil {
		return "", Manifest{}, explain(err, opt.Staging)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	p := puller{entry: e, opt: opt, dir: dir, work: filepath.Join(dir, "work"), depmod: depmod}
	m, err = p.run(ctx)
	if ctx.Err() != nil {
		err = cancelled(ctx)
	}
	if err != nil {
		return "", Manifest{}, fault.Context(explain(err, opt.Staging), "kernel %s", e.Name)
	}
	return dir, m, nil
}

// cancelled returns why ctx ended. A cause without a class of its own gets that of the context.
func cancelled(ctx context.Context) error {
	cause := context.Cause(ctx)
	if fault.Is(cause, fault.Internal) {
		return fault.Wrap(fault.ClassOf(ctx.Err()), cause, "stopped")
	}
	return cause
}

// explain gives a full disk its class.
func explain(err error, staging string) error {
	if ext4.NoSpace(err) && !fault.Is(err, fault.Exhausted) {
		return ext4.Exhausted(err, filepath.Join(staging, "the kernel"), spaceNeeded)
	}
	return err
}

// spaceNeeded is what a Debian cloud kernel takes while it is unpacked.
const spaceNeeded = 400 << 20

// puller is one run of Pull.
type puller struct {
	entry  Entry
	opt    PullOptions
	dir    string // the result
	work   string // what only this run needs, in dir
	depmod string // program
}

func (p *puller) run(ctx context.Context) (Manifest, error) {
	if err := os.Mkdir(p.work, 0o700); err != nil {
		return Manifest{}, err
	}
	pkg, deb, err := p.download(ctx)
	if err != nil {
		return Manifest{}, err
	}
	p.report("unpacking %s", pkg.Name)
	tree, err := unpack(ctx, deb, p.work)
	if err != nil {
		return Manifest{}, fault.Context(err, "unpack %s", pkg.Name)
	}
	if err := extractFile(tree.kernel, filepath.Join(p.dir, ImageFile)); err != nil {
		return Manifest{}, fault.Context(err, "unpack %s", pkg.Name)
	}
	p.report("indexing the modules of %s", tree.version)
	if err := runDepmod(ctx, p.depmod, tree); err != nil {
		return Manifest{}, err
	}
	order, err := copyBootModules(tree.modules, filepath.Join(p.dir, BootDir))
	if err != nil {
		return Manifest{}, err
	}
	p.report("building the modules image")
	if err := writeModulesImage(ctx, tree, filepath.Join(p.dir, ModulesFile)); err != nil {
		return Manifest{}, err
	}
	m := Manifest{
		Layout: Layout, Name: p.entry.Name, Version: tree.version, Arch: p.opt.Arch,
		Package: pkg.Name, PackageVersion: pkg.Version, Digest: "sha256:" + pkg.SHA256, Source: pkg.URI(),
		BootModules: order, Created: time.Now().UTC().Truncate(time.Second),
	}
	if err := os.RemoveAll(p.work); err != nil {
		return Manifest{}, err
	}
	return m, atomicfile.WriteJSON(filepath.Join(p.dir, ManifestFile), m)
}

// download finds the package and gets it.
func (p *puller) download(ctx context.Context) (debarchive.Package, string, error) {
	none := debarchive.Package{}
	meta, ok := p.entry.Package[p.opt.Arch]
	if !ok {
		return none, "", fault.New(fault.Invalid, "there is none for %s", p.opt.Arch).WithHint("banger kernel catalog")
	}
	archive, err := debarchive.Open(ctx, p.entry.Codename, debarchive.Options{
		Mirror: p.opt.Mirror, Keyring: p.opt.Keyring, HostRoot: p.opt.HostRoot, Stall: p.opt.Stall,
	})
	if err != nil {
		return none, "", err
	}
	p.report("reading the index of the archive")
	pkgs, err := archive.Packages(ctx, p.opt.Arch, func(name string) bool { return strings.HasPrefix(name, kernelPrefix) })
	if err != nil {
		return none, "", err
	}
	pkg, err := newestKernel(pkgs, meta)
	if err != nil {
		return none, "", fault.Context(err, "archive %s", strings.Join(archive.Mirrors(), ", "))
	}
	deb := filepath.Join(p.work, "package.deb")
	err = archive.Download(ctx, pkg, deb, func(done uint64) {
		p.opt.Progress.Report(progress.Update{
			Stage: stage, Message: "downloading " + pkg.Name, Done: done, Total: uint64(pkg.Size), Unit: "bytes",
		})
	})
	return pkg, deb, err
}

func (p *puller) report(format string, args ...any) {
	p.opt.Progress.Report(progress.Update{Stage: stage, Message: fmt.Sprintf(format, args...)})
}

// kernelPrefix begins the names of all packages that matter: kernels, and the meta packages that depend on the newest.
const kernelPrefix = "linux-image-"

// newestKernel follows the newest meta package to the kernel itself.
func newestKernel(pkgs []debarchive.Package, meta string) (debarchive.Package, error) {
	pkg, ok := debarchive.Newest(pkgs, meta, "")
	for range 3 { // a meta package may depend on another one
		if !ok {
			return debarchive.Package{}, fault.New(fault.NotFound, "no package %s", meta)
		}
		i := indexKernel(pkg.Depends)
		if i < 0 {
			return pkg, nil
		}
		meta = pkg.Depends[i].Name
		pkg, ok = debarchive.Newest(pkgs, meta, pkg.Depends[i].Version)
	}
	return debarchive.Package{}, fault.New(fault.Invalid, "package %s depends on ever more kernels", meta)
}

func indexKernel(deps []debarchive.Dependency) int {
	for i, d := range deps {
		if strings.HasPrefix(d.Name, kernelPrefix) {
			return i
		}
	}
	return -1
}
