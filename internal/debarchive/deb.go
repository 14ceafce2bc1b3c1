package debarchive

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"banger/internal/fault"
)

const (
	maxWindow   = 128 << 20 // bytes of memory that a compressed stream may ask for
	maxUnpacked = 8 << 30   // bytes of all that is in a package
	maxEntries  = 200_000   // files in a package
)

// Unpack reads a binary package and calls visit for everything in it, in the package's order. The header's name is
// relative, slash-separated and clean; a package with a name that leaves its directory is refused. visit may read the
// content of a regular file from r, which is valid only during the call.
func Unpack(deb io.Reader, visit func(h *tar.Header, r io.Reader) error) error {
	in := bufio.NewReaderSize(deb, 256<<10)
	magic := make([]byte, 8)
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != "!<arch>\n" {
		return fault.New(fault.Invalid, "not a Debian package")
	}
	for first := true; ; first = false {
		m, err := nextMember(in)
		if err == io.EOF {
			return fault.New(fault.Invalid, "package has no data")
		}
		if err != nil {
			return err
		}
		suffix, isData := strings.CutPrefix(m.name, "data.tar")
		switch {
		case first:
			err = checkFormat(m)
		case isData:
			return unpackTar(m, suffix, visit)
		}
		if err == nil {
			_, err = io.CopyN(io.Discard, in, m.N+m.padding)
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, noEOF(err), "package")
		}
	}
}

// member is one file of an ar archive.
type member struct {
	io.LimitedReader
	name    string
	padding int64
}

// nextMember reads the 60-byte header of the next file (ar(5)).
func nextMember(r io.Reader) (*member, error) {
	header := make([]byte, 60)
	if n, err := io.ReadFull(r, header); err != nil {
		if n == 0 && err == io.EOF {
			return nil, io.EOF
		}
		return nil, fault.Wrap(fault.Invalid, noEOF(err), "package")
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(header[48:58])), 10, 64)
	if err != nil || size < 0 || string(header[58:]) != "`\n" {
		return nil, fault.New(fault.Invalid, "package: bad archive header")
	}
	name := strings.TrimSuffix(strings.TrimSpace(string(header[:16])), "/")
	return &member{LimitedReader: io.LimitedReader{R: r, N: size}, name: name, padding: size & 1}, nil
}

func checkFormat(m *member) error {
	version, err := io.ReadAll(io.LimitReader(m, 64))
	if err == nil && (m.name != "debian-binary" || !strings.HasPrefix(string(version), "2.")) {
		return fmt.Errorf("unknown format %q", version)
	}
	return err
}

func unpackTar(m *member, suffix string, visit func(*tar.Header, io.Reader) error) error {
	plain, err := decompress(suffix, m)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "package")
	}
	limit := &io.LimitedReader{R: plain, N: maxUnpacked}
	tr := tar.NewReader(limit)
	for range maxEntries {
		h, err := tr.Next()
		if err == io.EOF {
			if _, err = io.Copy(io.Discard, limit); err != nil { // a compressed stream has its checksums at the end
				return fault.Wrap(fault.Invalid, err, "package")
			}
			return nil
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, noEOF(err), "package")
		}
		if h.Name, err = cleanName(h.Name); err != nil {
			return err
		}
		if err := visit(h, tr); err != nil {
			return fault.Context(noEOF(err), "package: %s", h.Name)
		}
	}
	return fault.New(fault.Invalid, "package has too many files")
}

// cleanName makes a name of a tar relative and clean.
func cleanName(name string) (string, error) {
	clean := path.Clean(name)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0) {
		return "", fault.New(fault.Denied, "package holds a file outside of itself: %q", name)
	}
	return clean, nil
}

// noEOF makes sure that the end of the input in the middle of something is not taken for its regular end.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decompress returns the plain form of r, whose compression the suffix of its file name tells.
func decompress(suffix string, r io.Reader) (io.Reader, error) {
	switch suffix {
	case "":
		return r, nil
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		return xz.NewReader(r, maxWindow)
	case ".zst":
		// One goroutine less to wait for: a decoder without concurrency needs no Close.
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow))
	}
	return nil, fmt.Errorf("unknown compression %q", suffix)
}
