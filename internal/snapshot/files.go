package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/vmdir"
)

// File is one file of a snapshot and how it can be told that it is still what it was.
type File struct {
	Name  string `json:"name"`
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime_ns"` // nobody writes to it after the snapshot was taken
	// Sum is the file's checksum: "sha256:...", or for large files "crc32c:..." of the data outside of holes and of where it
	// is. Empty where that would cost more than the snapshot itself; then Size and MTime have to do.
	Sum string `json:"sum,omitempty"`
}

// small files get a cryptographic checksum.
const small = 4 << 20

// castagnoli is the polynomial that processors have an instruction for: a gigabyte takes a tenth of a second.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Report hears how many bytes of so many were read.
type Report func(done, total uint64)

// Measure describes the files in dir for a manifest. Those that skip names get no checksum.
func Measure(ctx context.Context, dir string, skip ...string) ([]File, error) {
	var files []File
	for _, name := range []string{vmdir.SavedMemory, vmdir.SavedState, vmdir.SavedDisk, vmdir.SavedManifest} {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f := File{Name: name, Size: info.Size(), MTime: info.ModTime().UnixNano()}
		if !slices.Contains(skip, name) {
			if f.Sum, err = sumOf(ctx, path, nil); err != nil {
				return nil, err
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// checkSizes finds files that are gone or were cut short: it costs nothing.
func checkSizes(dir string, files []File) error {
	for _, f := range files {
		info, err := os.Stat(filepath.Join(dir, f.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fault.New(fault.Conflict, "its file %s is gone", f.Name)
		case err != nil:
			return fault.Wrap(fault.Conflict, err, "its file %s", f.Name)
		case info.Size() != f.Size:
			return fault.New(fault.Conflict, "its file %s has %d bytes and not %d any more", f.Name, info.Size(), f.Size)
		}
	}
	return nil
}

// Check makes sure that the files of a snapshot are what they were. With diskOnly those of the memory do not matter.
func (s *Snapshot) Check(ctx context.Context, diskOnly bool, report Report) error {
	if s.Sum == "" { // the manifest could not be read
		return fault.New(fault.Conflict, "%s", s.Problem)
	}
	files := s.Files
	if diskOnly {
		files = nil
		for _, f := range s.Files {
			if f.Name == vmdir.SavedDisk {
				files = append(files, f)
			}
		}
	}
	if err := checkSizes(s.Dir, files); err != nil {
		return err
	}
	var total, done uint64
	for _, f := range files {
		if n, err := ext4.Usage(filepath.Join(s.Dir, f.Name)); err == nil && f.Size > small && f.Sum != "" {
			total += n
		}
	}
	for _, f := range files {
		if err := f.check(ctx, s.Dir, func(n int) {
			done += uint64(n)
			if report != nil {
				report(min(done, total), total)
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) check(ctx context.Context, dir string, read func(int)) error {
	path := filepath.Join(dir, f.Name)
	changed := fault.New(fault.Conflict, "its file %s was changed", f.Name)
	if f.Sum == "" {
		info, err := os.Stat(path)
		if err != nil {
			return fault.Wrap(fault.Conflict, err, "its file %s", f.Name)
		}
		if info.ModTime().UnixNano() != f.MTime {
			return changed
		}
		return nil
	}
	sum, err := sumOf(ctx, path, read)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fault.Wrap(fault.Conflict, err, "its file %s", f.Name)
	case sum != f.Sum:
		return changed
	}
	return nil
}

// sumOf is the checksum of a file. read, if it is not nil, hears of each piece.
func sumOf(ctx context.Context, path string, read func(int)) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if info.Size() <= small {
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return "", err
		}
		return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
	}
	crc, err := crcOf(ctx, f, info.Size(), read)
	return fmt.Sprintf("crc32c:%08x", crc), err
}

// zero is what a block without data looks like.
var zero [4096]byte

// crcOf is the checksum of what is not zero in a sparse file, with its places: a copy of the file may have holes elsewhere.
func crcOf(ctx context.Context, f *os.File, size int64, read func(int)) (crc uint32, err error) {
	buf := make([]byte, 1<<20)
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return 0, os.NewSyscallError("seek", err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return 0, os.NewSyscallError("seek", err)
		}
		for start -= start % int64(len(zero)); start < end; {
			if err := context.Cause(ctx); err != nil {
				return 0, err
			}
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-start)], start)
			if err != nil && !errors.Is(err, io.EOF) || n == 0 {
				return 0, errors.Join(err, io.ErrUnexpectedEOF)
			}
			crc = crcBlocks(crc, buf[:n], start)
			if read != nil {
				read(n)
			}
			start += int64(n)
		}
		at = end
	}
	return crc, nil
}

// crcBlocks goes on with a checksum over the blocks of data that are not zero.
func crcBlocks(crc uint32, data []byte, at int64) uint32 {
	var place [8]byte
	for len(data) > 0 {
		block := data[:min(len(zero), len(data))]
		if string(block) != string(zero[:len(block)]) {
			binary.LittleEndian.PutUint64(place[:], uint64(at))
			crc = crc32.Update(crc32.Update(crc, castagnoli, place[:]), castagnoli, block)
		}
		data, at = data[len(block):], at+int64(len(block))
	}
	return crc
}

// links is how many names a file has.
func links(e fs.DirEntry) uint64 {
	info, err := e.Info()
	if err != nil {
		return 1
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 1
	}
	return uint64(st.Nlink)
}

// Reseal makes the manifest in dir fit the files there again. It is for tests that change a snapshot in a way that its
// checksums are not to notice.
func Reseal(ctx context.Context, dir string) error {
	m, err := readManifest(dir)
	if err != nil {
		return err
	}
	if m.Files, err = Measure(ctx, dir); err != nil {
		return err
	}
	return m.write(dir)
}
