package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/fault"
)

// modulesDir returns the directory with the modules of a release: dir itself, or one inside it where `make
// modules_install` with another root puts them.
func modulesDir(dir, release string) (string, error) {
	for _, place := range []string{"", "lib/modules/" + release, "usr/lib/modules/" + release, release} {
		path := filepath.Join(dir, filepath.FromSlash(place))
		for _, sign := range []string{"modules.dep", "modules.order", "kernel"} {
			if _, err := os.Stat(filepath.Join(path, sign)); err == nil {
				return path, nil
			}
		}
	}
	return "", fault.New(fault.Invalid, "no modules of Linux %s in it", release)
}

// copyModules copies a modules directory to the new directory dst, without what no guest needs. A link to a module
// becomes a module; other links are left out: they lead to sources.
func copyModules(ctx context.Context, src, dst string) error {
	c := copier{ctx: ctx, left: maxTotal, files: maxFiles}
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return readFault(err, path)
		}
		name, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dst, name)
		switch {
		case name != "." && unwanted(filepath.ToSlash(name)):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		case d.Type().IsRegular(), d.Type() == fs.ModeSymlink && isModule(name):
			return c.copy(path, to)
		}
		return nil
	})
}

// isModule reports whether a file is a module, also a compressed one, by its name.
func isModule(name string) bool {
	_, suffix, ok := strings.Cut(filepath.Base(name), ".ko")
	return ok && (suffix == "" || suffix[0] == '.')
}

// copier copies files until it has copied too much.
type copier struct {
	ctx   context.Context // of one call of copyModules
	left  int64           // bytes
	files int
}

// copy copies a regular file, or what a link to one leads to. A link that leads nowhere is left out.
func (c *copier) copy(src, dst string) error {
	info, err := os.Stat(src)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return readFault(err, src)
	}
	c.files--
	if c.left -= info.Size(); info.Size() > maxFile || c.left < 0 || c.files < 0 {
		return fault.New(fault.Invalid, "too large: more than %d bytes in a file, %d in all or %d files", maxFile, maxTotal, maxFiles)
	}
	return copyFile(c.ctx, src, dst, maxFile)
}

// copyFile copies up to limit bytes of a file, more of which is an error, to a new one.
func copyFile(ctx context.Context, src, dst string, limit int64) error {
	in, err := os.Open(src)
	if err != nil {
		return readFault(err, src)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(contextReader{ctx, in}, limit+1))
	if err == nil && n > limit {
		err = fault.New(fault.Invalid, "%s has more than %d bytes", src, limit)
	}
	return errors.Join(err, out.Close())
}

// contextReader is a reader that ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// readUpTo reads a file of up to limit bytes.
func readUpTo(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, readFault(err, path)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fault.New(fault.Invalid, "more than %d bytes", limit)
	}
	return data, err
}

// contentDigest names an imported kernel by what it was made of, as it has been copied: the same files give the same
// digest whatever they are called and however the kernel was compressed.
func contentDigest(ctx context.Context, dir string, t tree) (string, error) {
	h := sha256.New()
	for _, path := range []string{filepath.Join(dir, ImageFile), filepath.Join(dir, InitrdFile), t.config} {
		if err := addFile(ctx, h, path, filepath.Base(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if t.modules != "" {
		err := filepath.WalkDir(t.modules, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return addFile(ctx, h, path, strings.TrimPrefix(path, t.modules))
		})
		if err != nil {
			return "", err
		}
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// addFile adds a file's name, size and content to a digest.
func addFile(ctx context.Context, h hash.Hash, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "%q %d\n", name, info.Size())
	_, err = io.Copy(h, contextReader{ctx, f})
	return err
}
