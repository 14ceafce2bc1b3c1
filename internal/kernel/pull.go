// Package kernel gets guest kernels, from a distribution's signed archive (Pull) or from files of the host (Import), and
// lays them out for a VMM.
//
// The package archive is verified as internal/debarchive describes. What is in the package is then taken apart in Go,
// without root: the VMM loads the uncompressed kernel (which boots faster than one that unpacks itself), the whole tree
// of modules becomes one read-only disk image for modprobe in the guest, and the few modules that the guest needs
// before it can see that disk are kept as files, for the initramfs.
//
// Publishing the result (rename to its final place, row in the database) is the daemon's job.
package kernel

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"banger/internal/debarchive"
	"banger/internal/fault"
	"banger/internal/progress"
)

// maxParts is how many packages one kernel may consist of. Debian has four.
const maxParts = 16

// PullOptions of Pull. Only Staging is required.
type PullOptions struct {
	Staging  string        // existing directory for the new kernel, on the file system that it will be published to
	Arch     string        // Debian's name; empty: the entry's, else this host's
	Mirror   string        // base URI of the archive (config key mirror.debian); empty: the host's apt configuration
	Keyring  string        // file of the archive's keys; empty: the one that the source names, else Debian's
	HostRoot string        // where the host's apt configuration is found; empty: /
	Stall    time.Duration // how long the mirror may send nothing; 0: debarchive.DefaultStall
	Progress progress.Func // stage "kernel"
}

// Pull downloads the newest kernel of e, verifies and unpacks it. It returns the path of a new directory below
// opt.Staging, for the caller to publish or remove, and what it holds. On failure nothing is left there.
func Pull(ctx context.Context, e Entry, opt PullOptions) (stagedDir string, m Manifest, err error) {
	// Debian and Go have the same names for the architectures that banger runs on.
	opt.Arch = cmp.Or(opt.Arch, e.Arch, runtime.GOARCH)
	depmod, err := findDepmod()
	if err != nil {
		return "", Manifest{}, err
	}
	return stage(ctx, opt.Staging, e.Name, func(dir, work string) (Manifest, error) {
		p := puller{entry: e, opt: opt, dir: dir, work: work, depmod: depmod}
		return p.run(ctx)
	})
}

// puller is one run of Pull.
type puller struct {
	entry  Entry
	opt    PullOptions
	dir    string // the result
	work   string // what only this run needs, in dir
	depmod string // program
}

func (p *puller) run(ctx context.Context) (Manifest, error) {
	pkgs, debs, err := p.download(ctx)
	if err != nil {
		return Manifest{}, err
	}
	name := pkgs[0].Name
	p.report("unpacking %s", name)
	tree, err := unpack(ctx, debs, p.work)
	if err != nil {
		return Manifest{}, fault.Context(err, "unpack %s", name)
	}
	facts, err := extractFile(ctx, tree.kernel, filepath.Join(p.dir, ImageFile))
	if err != nil {
		return Manifest{}, fault.Context(err, "unpack %s", name)
	}
	if facts.arch != p.opt.Arch {
		return Manifest{}, fault.New(fault.Invalid, "package %s has a kernel for %s", name, facts.arch)
	}
	p.report("indexing the modules of %s", tree.version)
	if err := runDepmod(ctx, p.depmod, tree); err != nil {
		return Manifest{}, err
	}
	p.report("building the modules image")
	m, err := layOut(ctx, tree, evidence{image: facts, trusted: true}, p.dir, false)
	if err != nil {
		return Manifest{}, err
	}
	m.Name, m.Origin, m.Source = p.entry.Name, p.entry.Origin(), pkgs[0].URI()
	m.Package, m.PackageVersion, m.Digest = name, pkgs[0].Version, digestOf(pkgs)
	return m, nil
}

// digestOf names what a kernel was made of: its package, or the list of them.
func digestOf(pkgs []debarchive.Package) string {
	if len(pkgs) == 1 {
		return "sha256:" + pkgs[0].SHA256
	}
	h := sha256.New()
	for _, p := range pkgs {
		fmt.Fprintf(h, "%s\n", p.SHA256)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// download finds the packages of the kernel, the one that is named after it first, and gets them.
func (p *puller) download(ctx context.Context) (pkgs []debarchive.Package, debs []string, err error) {
	meta, ok := p.entry.Package[p.opt.Arch]
	if !ok {
		return nil, nil, fault.New(fault.Invalid, "there is none for %s", p.opt.Arch).WithHint("banger kernel catalog")
	}
	archive, err := debarchive.Open(ctx, p.entry.Codename, debarchive.Options{
		Mirror: p.opt.Mirror, Keyring: p.opt.Keyring, HostRoot: p.opt.HostRoot, Stall: p.opt.Stall,
		Backports: p.entry.Backports,
	})
	if err != nil {
		return nil, nil, err
	}
	p.report("reading the index of the archive")
	all, err := archive.Packages(ctx, p.opt.Arch, isKernelPackage)
	if err != nil {
		return nil, nil, err
	}
	if pkgs, err = newestKernel(all, meta); err != nil {
		return nil, nil, fault.Context(err, "archive %s", strings.Join(archive.Mirrors(), ", "))
	}
	var total, before uint64
	for _, pkg := range pkgs {
		total += uint64(pkg.Size)
	}
	for i, pkg := range pkgs {
		deb := filepath.Join(p.work, fmt.Sprintf("package-%d.deb", i))
		err := archive.Download(ctx, pkg, deb, func(done uint64) {
			p.opt.Progress.Report(progress.Update{
				Stage: stageName, Message: "downloading " + pkg.Name, Done: before + done, Total: total, Unit: "bytes",
			})
		})
		if err != nil {
			return nil, nil, err
		}
		debs, before = append(debs, deb), before+uint64(pkg.Size)
	}
	return pkgs, debs, nil
}

func (p *puller) report(format string, args ...any) {
	p.opt.Progress.Report(progress.Update{Stage: stageName, Message: fmt.Sprintf(format, args...)})
}

// kernelPrefix begins the names of kernels and of the meta packages that depend on the newest.
const kernelPrefix = "linux-image-"

// isKernelPackage reports whether a package may be a kernel or a part of one. Since Linux 6.19 Debian has the kernel,
// its modules and what is about both in packages of their own.
func isKernelPackage(name string) bool {
	for _, prefix := range []string{kernelPrefix, "linux-binary-", "linux-modules-", "linux-base-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// newestKernel follows the newest meta package to the kernel itself and returns that with its parts.
func newestKernel(all []debarchive.Package, meta string) ([]debarchive.Package, error) {
	pkg, ok := debarchive.Newest(all, meta, "")
	for range 3 { // a meta package may depend on another one
		if !ok {
			return nil, fault.New(fault.NotFound, "no package %s", meta)
		}
		i := slices.IndexFunc(pkg.Depends, func(d debarchive.Dependency) bool { return strings.HasPrefix(d.Name, kernelPrefix) })
		if i < 0 {
			return parts(all, pkg)
		}
		meta = pkg.Depends[i].Name
		pkg, ok = debarchive.Newest(all, meta, pkg.Depends[i].Version)
	}
	return nil, fault.New(fault.Invalid, "package %s depends on ever more kernels", meta)
}

// parts returns pkg and all the packages of exactly the same kernel that it depends on.
func parts(all []debarchive.Package, pkg debarchive.Package) ([]debarchive.Package, error) {
	out := []debarchive.Package{pkg}
	for i := 0; i < len(out); i++ {
		for _, d := range out[i].Depends {
			here := func(p debarchive.Package) bool { return p.Name == d.Name }
			if d.Version == "" || !isKernelPackage(d.Name) || slices.ContainsFunc(out, here) {
				continue
			}
			part, ok := debarchive.Newest(all, d.Name, d.Version)
			switch {
			case !ok:
				return nil, fault.New(fault.NotFound, "no package %s (%s), which %s needs", d.Name, d.Version, out[i].Name)
			case len(out) == maxParts:
				return nil, fault.New(fault.Invalid, "package %s has more than %d parts", pkg.Name, maxParts)
			}
			out = append(out, part)
		}
	}
	return out, nil
}
