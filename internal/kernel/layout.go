package kernel

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"banger/internal/fault"
)

// maxBootFile is the most that a compressed kernel may have: it is read into memory. A distribution's has 15 MiB.
const maxBootFile = 256 << 20

// layOut makes everything in a kernel's directory but the manifest, which it begins, from an unpacked tree with its
// indexes and from the kernel that extractFile has put there. With force it does so for a kernel that cannot start, too.
func layOut(ctx context.Context, t tree, e evidence, dir string, force bool) (Manifest, error) {
	v, files, err := examine(t, e)
	if err != nil {
		return Manifest{}, err
	}
	release := t.version
	if force {
		release = ""
	} else if err := v.refusal(); err != nil {
		return Manifest{}, err
	}
	order, err := copyBootModules(t.modules, files, release, filepath.Join(dir, BootDir))
	if err != nil {
		return Manifest{}, err
	}
	if err := writeModulesImage(ctx, t, filepath.Join(dir, ModulesFile)); err != nil {
		return Manifest{}, err
	}
	return Manifest{
		Layout: Layout, Version: t.version, Arch: e.image.arch, BootModules: order, Missing: v.missing, Unknown: v.unknown,
		Created: time.Now().UTC().Truncate(time.Second),
	}, nil
}

// examine completes the evidence with what is in the tree, and returns the verdict and the files of the modules that the
// initramfs needs.
func examine(t tree, e evidence) (v verdict, files []string, err error) {
	if t.modules != "" {
		if e.modules, err = readIndex(t.modules); err != nil {
			return verdict{}, nil, err
		}
	}
	text, err := os.ReadFile(t.config)
	switch {
	case t.config == "" || errors.Is(err, fs.ErrNotExist):
		text = e.image.config
	case err != nil:
		return verdict{}, nil, err
	}
	if text != nil {
		if e.config, err = parseConfig(text); err != nil {
			return verdict{}, nil, err
		}
	}
	v = judge(e)
	files, err = e.modules.loadOrder(v.load)
	return v, files, err
}

// extractFile writes the kernel inside the boot file src to the new file dst and looks at it.
func extractFile(ctx context.Context, src, dst string) (imageFacts, error) {
	in, err := os.Open(src)
	if err != nil {
		return imageFacts{}, err
	}
	defer in.Close()
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return imageFacts{}, err
	}
	err = copyKernel(ctx, in, f)
	var facts imageFacts
	if err == nil {
		facts, err = inspectFile(f)
	}
	if err == nil {
		err = f.Sync()
	}
	return facts, errors.Join(err, f.Close())
}

// copyKernel writes the kernel inside the boot file in to out. One that is not compressed may be very large, with what
// a debugger needs, and is passed through.
func copyKernel(ctx context.Context, in *os.File, out io.Writer) error {
	head := make([]byte, 64)
	n, err := in.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return err
	}
	limit := int64(maxBootFile)
	plain := bytes.HasPrefix(head[:n], []byte(elf.ELFMAG)) || isARM64Image(head[:n])
	if plain {
		limit = maxKernel
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if info.Size() > limit {
		return fault.New(fault.Invalid, "kernel is too large: more than %d bytes", limit)
	}
	r := io.LimitReader(contextReader{ctx, in}, limit)
	if plain {
		_, err := io.Copy(out, r)
		return err
	}
	image, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(out, 1<<20)
	if err := extract(image, w); err != nil {
		return err
	}
	return w.Flush()
}
