package kernel

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"banger/internal/ext4"
)

// writeModulesImage makes a read-only disk of the modules tree, to be mounted at /lib/modules/<version> in the guest.
// A kernel without modules gets an empty one.
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
// same bytes. Modules stay compressed as they are: the image is smaller, and modprobe in the guest knows what to do.
func writeTar(t tree, w io.Writer) error {
	tw := tar.NewWriter(w)
	if t.modules == "" {
		h := &tar.Header{Name: "./", Mode: 0o755, ModTime: t.time, Typeflag: tar.TypeDir}
		return errors.Join(tw.WriteHeader(h), tw.Close())
	}
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
