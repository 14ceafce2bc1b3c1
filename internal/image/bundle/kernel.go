package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/kernel"
)

// The kernel part is a tar of the files of a kernel's directory: the manifest first, then the others by name. The modules'
// file system is as large as all of banger's read-only disks and mostly a hole: what is zero at the end of a file is left
// out, and a record says how long the file is.

// lengthRecord is the PAX record that says how long a file is whose end is left out.
const lengthRecord = "BANGER.length"

// Limits of a kernel part. A distribution's kernel has some 30 files here.
const (
	maxKernelFiles = 256
	maxFileLength  = ext4.DefaultSize
	block          = 4096
)

// kernelFile is a file of a kernel's directory.
type kernelFile struct {
	name   string // with slashes
	length int64  // as a program sees it
	stored int64  // without the zeros at its end
}

// kernelFiles lists the files, the manifest first.
func kernelFiles(dir string) ([]kernelFile, error) {
	var files []kernelFile
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() || !kernelName().MatchString(filepath.ToSlash(name)) {
			return fault.New(fault.Invalid, "kernel in %s: %q does not belong there", dir, name)
		}
		length, stored, err := measure(file)
		files = append(files, kernelFile{filepath.ToSlash(name), length, stored})
		return err
	})
	slices.SortFunc(files, func(a, b kernelFile) int {
		if (a.name == ManifestName) != (b.name == ManifestName) {
			if a.name == ManifestName {
				return -1
			}
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	if err == nil && (len(files) == 0 || files[0].name != ManifestName) {
		err = fault.New(fault.NotFound, "no kernel in %s", dir).WithHint("banger kernel list")
	}
	if err == nil && len(files) > maxKernelFiles {
		err = fault.New(fault.Invalid, "the kernel in %s has more than %d files", dir, maxKernelFiles)
	}
	return files, err
}

// kernelName is what a file of a kernel's directory is called: at most one directory deep, nothing hidden.
func kernelName() *regexp.Regexp {
	return regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._+-]{0,200}/)?[A-Za-z0-9][A-Za-z0-9._+-]{0,200}$`)
}

// measure returns the length of a file, and how much of it there is before the zeros at its end, in whole blocks.
func measure(file string) (length, stored int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	end, err := dataEnd(f, info.Size())
	if err != nil {
		return 0, 0, err
	}
	buf, zeros := make([]byte, block), make([]byte, block)
	for end > 0 {
		start := (end - 1) / block * block
		n, err := f.ReadAt(buf[:end-start], start)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			break
		}
		end = start
	}
	return info.Size(), end, nil
}

// dataEnd is where the last hole of a file begins. Where the file system knows no holes, that is its end.
func dataEnd(f *os.File, size int64) (int64, error) {
	end := int64(0)
	for pos := int64(0); pos < size; {
		start, err := unix.Seek(int(f.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return end, nil
		}
		if err != nil {
			return size, nil
		}
		if pos, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return size, nil
		}
		end = pos
	}
	return end, nil
}

// measureKernel says what the kernel part of the directory will be.
func measureKernel(ctx context.Context, dir string) (Part, error) {
	var count counter
	hash := sha256.New()
	if err := packKernel(ctx, dir, io.MultiWriter(hash, &count)); err != nil {
		return Part{}, err
	}
	return Part{Name: KernelName, MediaType: KernelType, SHA256: hex.EncodeToString(hash.Sum(nil)), Size: int64(count)}, nil
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// packKernel writes the directory as a kernel part.
func packKernel(ctx context.Context, dir string, to io.Writer) error {
	files, err := kernelFiles(dir)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(to)
	if err := packManifest(tw, dir); err != nil {
		return err
	}
	for _, file := range files[1:] {
		if err := packFile(ctx, tw, filepath.Join(dir, filepath.FromSlash(file.name)), file); err != nil {
			return fault.Context(err, "kernel in %s: %s", dir, file.name)
		}
	}
	return tw.Close()
}

// packManifest writes the kernel's manifest without what is of this host, so that the same kernel is the same part
// whichever host has exported it.
func packManifest(tw *tar.Writer, dir string) error {
	m, err := kernel.Load(dir)
	if err != nil {
		return err
	}
	m.Name, m.Digest, m.Source, m.Created = "", "", "", time.Time{}
	data, err := json.Marshal(m)
	if err == nil {
		err = tw.WriteHeader(header(ManifestName, int64(len(data))))
	}
	if err == nil {
		_, err = tw.Write(data)
	}
	return err
}

func packFile(ctx context.Context, tw *tar.Writer, file string, k kernelFile) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	hdr := header(k.name, k.stored)
	if k.stored != k.length {
		hdr.PAXRecords = map[string]string{lengthRecord: strconv.FormatInt(k.length, 10)}
	}
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = io.Copy(tw, &interruptible{ctx, io.LimitReader(f, k.stored)})
	return err
}

// unpackKernel makes dir, which must not exist, of a kernel part. Only plain files come out of it, below dir.
func unpackKernel(ctx context.Context, from io.Reader, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	tr := tar.NewReader(&interruptible{ctx, from})
	for count := 0; ; count++ {
		hdr, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return badKernel(err)
		case count == maxKernelFiles:
			return fault.New(fault.Invalid, "it has more than %d files", maxKernelFiles)
		}
		if err := unpackFile(tr, hdr, dir); err != nil {
			return fault.Context(badKernel(err), "%.80q", hdr.Name)
		}
	}
}

// syncKernel waits until what unpackKernel made is on the disk.
func syncKernel(dir string) error {
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// badKernel gives the errors of the tar format a class.
func badKernel(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Invalid, "it is cut off")
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fault.New(fault.Invalid, "it is not a tar stream")
	case errors.Is(err, unix.ENOTDIR):
		return fault.New(fault.Invalid, "it goes through a file")
	case errors.Is(err, fs.ErrExist):
		return fault.New(fault.Invalid, "it is there twice")
	}
	return err
}

func unpackFile(tr *tar.Reader, hdr *tar.Header, dir string) error {
	if hdr.Typeflag != tar.TypeReg || sparse(hdr) {
		return fault.New(fault.Invalid, "it is not a plain file")
	}
	if !kernelName().MatchString(hdr.Name) {
		return fault.New(fault.Invalid, "it is not a name of a kernel's file")
	}
	length := hdr.Size
	if text, ok := hdr.PAXRecords[lengthRecord]; ok {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < hdr.Size || n > maxFileLength {
			return fault.New(fault.Invalid, "its length %.40q is not possible", text)
		}
		length = n
	}
	if most := mostBytes(hdr.Name); length > most {
		return fault.New(fault.Invalid, "its %d bytes are more than %d", length, most)
	}
	file := filepath.Join(dir, filepath.FromSlash(hdr.Name))
	if sub := path.Dir(hdr.Name); sub != "." {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = writeSparse(f, tr)
	if err == nil {
		err = f.Truncate(length)
	}
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = os.Chtimes(file, time.Time{}, hdr.ModTime)
	}
	return errors.Join(err, f.Close())
}

// mostBytes is how large a kernel's file may be: all but its disk of modules are read as a whole some time.
func mostBytes(name string) int64 {
	switch name {
	case kernel.ManifestFile:
		return maxManifest
	case kernel.ModulesFile:
		return maxFileLength
	}
	return 1 << 30
}

// writeSparse copies r to f and leaves holes for what is zero.
func writeSparse(f *os.File, r io.Reader) error {
	buf, zeros := make([]byte, 64*block), make([]byte, block)
	for at := int64(0); ; {
		n, err := fill(r, buf)
		for from := 0; from < n; from += block {
			to := min(from+block, n)
			if bytes.Equal(buf[from:to], zeros[:to-from]) {
				continue
			}
			if _, err := f.WriteAt(buf[from:to], at+int64(from)); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fill is io.ReadFull which tells a reader that has ended from one that was cut off.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}
