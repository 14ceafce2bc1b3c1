package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/layer"
)

// Limits of an archive.
const (
	maxArchiveEntries = 100_000
	maxArchiveLinks   = 8        // symbolic links on the way to one file
	maxArchiveNames   = 16 << 20 // bytes of all names: a compressed archive may have more than this host has memory
)

// files are the parts of an image that is in a directory or a tar file, by slash-separated names.
type files interface {
	// open opens a file from offset on and tells how long it is altogether. One that is not there is fs.ErrNotExist.
	open(name string, offset int64) (io.ReadCloser, int64, error)
	close()
}

// readFile reads a document.
func readFile(f files, name string, limit int64) ([]byte, error) {
	r, _, err := f.open(name, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readAll(r, limit, name)
}

// directory is files of a directory.
type directory string

func (d directory) open(name string, offset int64) (io.ReadCloser, int64, error) {
	f, err := openRegular(filepath.Join(string(d), filepath.FromSlash(name)))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (directory) close() {}

// openRegular opens a file, and nothing that would make it wait.
func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fault.New(fault.Invalid, "%s is no regular file", name)
	}
	return f, nil
}

// archive is files of a tar file, which are read where they are.
type archive struct {
	file    *os.File // of the user's, or an unpacked copy without a name
	entries map[string]extent
	names   int // bytes of all that is in entries
}

// extent is where a file of an archive is.
type extent struct {
	off, size int64
	link      string // of a link: the name to look for instead
	sparse    bool
}

// openArchive reads the table of an archive. One that is compressed is unpacked into staging before.
func openArchive(ctx context.Context, name, staging string, limits layer.Limits) (*archive, error) {
	file, err := openRegular(name)
	if err != nil {
		return nil, fileError(err, name)
	}
	head := make([]byte, 6)
	n, _ := file.ReadAt(head, 0)
	if isCompressed(head[:n]) {
		packed := file
		file, err = unpackArchive(ctx, packed, staging, limits)
		packed.Close()
		if err != nil {
			return nil, fault.Context(err, "%s", name)
		}
	}
	a := &archive{file: file, entries: map[string]extent{}}
	if err := a.index(ctx); err != nil {
		file.Close()
		return nil, fault.Context(err, "%s", name)
	}
	return a, nil
}

func isCompressed(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b", "\x28\xb5\x2f\xfd", "\xfd7zXZ\x00"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return false
}

// unpackArchive decompresses into a file that is gone when it is closed.
func unpackArchive(ctx context.Context, packed io.Reader, staging string, limits layer.Limits) (_ *os.File, err error) {
	limit := limits.Size
	if limit <= 0 {
		limit = 64 << 30
	}
	r, err := layer.Decompress("", &contextReader{ctx, packed})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out, err := os.CreateTemp(staging, scratchName+"-archive-*")
	if err != nil {
		return nil, stagingError(err, staging)
	}
	if err = os.Remove(out.Name()); err == nil {
		var n int64
		n, err = io.Copy(out, io.LimitReader(r, limit+1))
		if err == nil && n > limit {
			err = fault.New(fault.Exhausted, "it is larger than %d bytes when it is decompressed", limit)
		}
		if ext4.NoSpace(err) {
			err = ext4.Exhausted(err, out.Name(), uint64(n))
		}
	}
	if err == nil {
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// index finds where the files are. tar.Reader reads whole blocks and never ahead, so that the position after each header
// is that of the contents.
func (a *archive) index(ctx context.Context) error {
	info, err := a.file.Stat()
	if err != nil {
		return err
	}
	tr := tar.NewReader(a.file)
	for count := 0; ; count++ {
		hdr, err := tr.Next()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == io.EOF && count == 0:
			return invalid("it is no tar file")
		case err == io.EOF:
			return nil
		case err != nil:
			return invalid("it is no tar file, or damaged after %d entries: %v", count, err)
		case count == maxArchiveEntries:
			return invalid("it has more than %d entries", maxArchiveEntries)
		}
		off, err := a.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if err := a.add(hdr, off, info.Size()); err != nil {
			return err
		}
	}
}

func (a *archive) add(hdr *tar.Header, off, end int64) error {
	name := cleanName(hdr.Name)
	e := extent{off: off, size: hdr.Size}
	switch hdr.Typeflag {
	case tar.TypeReg:
		for key := range hdr.PAXRecords {
			e.sparse = e.sparse || strings.HasPrefix(key, "GNU.sparse.")
		}
		if !e.sparse && e.size > end-off {
			return invalid("it is cut off in %s", short(name))
		}
	case tar.TypeGNUSparse:
		e.sparse = true
	case tar.TypeLink:
		e = extent{link: cleanName(hdr.Linkname)}
	case tar.TypeSymlink:
		e = extent{link: cleanName(path.Join(path.Dir(name), hdr.Linkname))}
	default:
		return nil
	}
	if a.names += len(name) + len(e.link); a.names > maxArchiveNames {
		return invalid("the names in it have more than %d bytes", maxArchiveNames)
	}
	a.entries[name] = e
	return nil
}

func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// find follows links: docker save makes them of layers that several images share.
func (a *archive) find(name string) (extent, error) {
	name = cleanName(name)
	for range maxArchiveLinks {
		e, ok := a.entries[name]
		switch {
		case !ok:
			return extent{}, fs.ErrNotExist
		case e.sparse:
			return extent{}, invalid("%s is kept as a sparse file: the archive has to be made without --sparse", short(name))
		case e.link == "":
			return e, nil
		}
		name = e.link
	}
	return extent{}, invalid("%s is a link that leads nowhere", short(name))
}

// open implements files. What it returns has a descriptor of its own: a download that others have joined may outlive the
// archive.
func (a *archive) open(name string, offset int64) (io.ReadCloser, int64, error) {
	e, err := a.find(name)
	if err != nil {
		return nil, 0, err
	}
	fd, err := unix.FcntlInt(a.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("dup", err)
	}
	f := os.NewFile(uintptr(fd), a.file.Name())
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, e.off+offset, e.size-offset), f}, e.size, nil
}

func (a *archive) close() { a.file.Close() }

// fileError gives a failure to read what the user has named its class.
func fileError(err error, name string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "no file %s", name).WithHint("ls -l %s", name)
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Denied, err, "read")
	}
	return err
}
