package kernel

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/progress"
)

// ImportOptions of Import. Name, Image and Staging are required.
type ImportOptions struct {
	Name     string        // of the kernel in the manifest
	Image    string        // a vmlinux, a bzImage with any payload, or an arm64 Image, also compressed
	Modules  string        // its modules, as in /lib/modules/RELEASE; empty: it needs none
	Config   string        // its configuration (.config, also compressed); empty: what Modules or Image carries
	Initrd   string        // an initial RAM disk to be unpacked before banger's own
	Staging  string        // existing directory for the new kernel, on the file system that it will be published to
	Force    bool          // import a kernel that certainly cannot start
	Progress progress.Func // stage "kernel"
}

// Import copies a kernel of this host and lays it out as Pull does; the files themselves are only read. It returns the
// path of a new directory below opt.Staging, for the caller to publish or remove, and what it holds: the Digest is that
// of the content, and Missing says what the kernel lacks. A kernel that certainly cannot start is refused (class
// Invalid) with that list unless opt.Force says otherwise. On failure nothing is left in opt.Staging.
func Import(ctx context.Context, opt ImportOptions) (stagedDir string, m Manifest, err error) {
	if err := opt.check(); err != nil {
		return "", Manifest{}, fault.Context(err, "kernel %s", opt.Name)
	}
	return stage(ctx, opt.Staging, opt.Name, func(dir, work string) (Manifest, error) {
		return importer{ImportOptions: opt, dir: dir, work: work}.run(ctx)
	})
}

// check looks at the files before anything is copied.
func (opt ImportOptions) check() error {
	if opt.Name == "" {
		return fault.New(fault.Invalid, "it has no name")
	}
	if err := checkFile(opt.Image, false); err != nil {
		return fault.Context(err, "image")
	}
	for _, f := range []struct {
		what, path string
		dir        bool
	}{{"modules", opt.Modules, true}, {"configuration", opt.Config, false}, {"initrd", opt.Initrd, false}} {
		if f.path == "" {
			continue
		}
		if err := checkFile(f.path, f.dir); err != nil {
			return fault.Context(err, "%s", f.what)
		}
	}
	return nil
}

// checkFile makes sure that path is a regular file that can be read, or a directory.
func checkFile(path string, dir bool) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "there is no %s", path)
	case err != nil:
		return readFault(err, path)
	case dir && !info.IsDir():
		return fault.New(fault.Invalid, "%s is not a directory", path)
	case dir:
		return nil
	case !info.Mode().IsRegular():
		return fault.New(fault.Invalid, "%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return readFault(err, path)
	}
	return f.Close()
}

// readFault gives a file that may not be read its class. Some distributions keep kernels for root only.
func readFault(err error, path string) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.Wrap(fault.Denied, err, "not readable").
			WithHint("sudo install -m 0644 %s /tmp/%s", path, filepath.Base(path))
	}
	return err
}

// importer is one run of Import.
type importer struct {
	ImportOptions
	dir  string // the result
	work string // what only this run needs, in dir
}

func (i importer) run(ctx context.Context) (Manifest, error) {
	say := func(message string) { i.Progress.Report(progress.Update{Stage: stageName, Message: message}) }
	say("copying " + i.Image)
	t, err := newTree(filepath.Join(i.work, "tree"))
	if err != nil {
		return Manifest{}, err
	}
	image := filepath.Join(i.dir, ImageFile)
	facts, err := extractFile(ctx, i.Image, image)
	if fault.Is(err, fault.Invalid) && fault.HintOf(err) == "" {
		err = fault.Wrap(fault.Invalid, err, "it is no kernel that banger can read").WithHint("file %q", i.Image)
	}
	if err != nil {
		return Manifest{}, fault.Context(err, "%s", i.Image)
	}
	if t.version = facts.release; t.version == "" {
		return Manifest{}, fault.New(fault.Invalid, "%s does not say which version of Linux it is", i.Image)
	}
	if facts.arch != runtime.GOARCH && !i.Force {
		return Manifest{}, fault.New(fault.Invalid, "the kernel cannot start a VM: it is for %s, this host is %s", facts.arch, runtime.GOARCH)
	}
	info, err := os.Stat(i.Image)
	if err != nil {
		return Manifest{}, err
	}
	t.time = info.ModTime()
	if i.Modules != "" {
		say("copying " + i.Modules)
		if err := i.addModules(ctx, &t); err != nil {
			return Manifest{}, fault.Context(err, "modules %s", i.Modules)
		}
	}
	if err := i.addConfig(&t); err != nil {
		return Manifest{}, fault.Context(err, "configuration %s", i.Config)
	}
	if i.Initrd != "" {
		if err := copyInitrd(ctx, i.Initrd, filepath.Join(i.dir, InitrdFile)); err != nil {
			return Manifest{}, fault.Context(err, "initrd %s", i.Initrd)
		}
	}
	say("building the modules image")
	m, err := layOut(ctx, t, evidence{image: facts}, i.dir, i.Force)
	if err != nil {
		return Manifest{}, err
	}
	m.Name, m.Origin, m.Source, m.Initrd = i.Name, OriginImport, i.Image, i.Initrd != ""
	m.Digest, err = contentDigest(ctx, i.dir, t)
	return m, err
}

// addModules copies the modules and makes their indexes if nobody has done that.
func (i importer) addModules(ctx context.Context, t *tree) error {
	src, err := modulesDir(i.Modules, t.version)
	if err != nil {
		return err
	}
	t.setVersion(t.version)
	if err := copyModules(ctx, src, t.modules); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(t.modules, "modules.dep")); err == nil {
		return nil
	}
	depmod, err := findDepmod()
	if err != nil {
		return err
	}
	return runDepmod(ctx, depmod, *t)
}

// addConfig puts the user's configuration where that of a package is.
func (i importer) addConfig(t *tree) error {
	if i.Config == "" {
		return nil
	}
	data, err := readUpTo(i.Config, maxConfig)
	if err != nil {
		return err
	}
	if bytes.HasPrefix(data, []byte(gzipMagic)) || bytes.HasPrefix(data, []byte(xzMagic)) || bytes.HasPrefix(data, []byte(zstdMagic)) {
		r, _, err := open(data)
		if err != nil {
			return err
		}
		if data, err = readLimited(r, maxConfig); err != nil {
			return err
		}
	}
	if _, err := parseConfig(data); err != nil {
		return err
	}
	if t.config == "" {
		t.config = filepath.Join(t.base, "config")
	}
	return atomicfile.Write(t.config, data, 0o644)
}
