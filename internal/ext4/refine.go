package ext4

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
)

// Limits of what a stream may hold. Its bytes come from the network or from a guest.
const (
	maxEntries  = 16 << 20
	maxPath     = 4095     // PATH_MAX of Linux without the final NUL
	maxName     = 255      // one component
	maxFileSize = 32 << 30 // the converter's extent tree is wrong above 42 GiB
	maxTrailer  = 16 << 20 // padding after the end marker; tar pads to 10 KiB
	maxMajor    = 0xfff
	maxMinor    = 0xfffff
)

// input is the raw stream: it counts and hashes every byte and knows whether the sender has ended.
type input struct {
	ctx   context.Context
	r     io.Reader
	raw   io.Reader
	hash  hash.Hash // nil: nobody wants it
	most  int       // entries
	read  uint64
	ended bool // the sender has closed the stream
}

func newInput(ctx context.Context, r io.Reader, hashed bool) *input {
	// For the headers. Contents that are larger go past the buffer.
	in := &input{ctx: ctx, r: bufio.NewReaderSize(r, 32<<10), raw: r, most: maxEntries}
	if hashed {
		in.hash = sha256.New()
	}
	return in
}

// Read is what the tar reader calls.
func (in *input) Read(p []byte) (int, error) {
	if err := context.Cause(in.ctx); err != nil {
		return 0, err
	}
	n, err := in.r.Read(p)
	if in.hash != nil {
		in.hash.Write(p[:n])
	}
	in.read += uint64(n)
	in.ended = in.ended || errors.Is(err, io.EOF)
	return n, err
}

// interrupt ends a Read that blocks, if the sender's end can be closed.
func (in *input) interrupt() {
	if c, ok := in.raw.(io.Closer); ok {
		_ = c.Close() // it is given up, and whoever opened it hears of its failure
	}
}

// refine copies the tar stream from in to w in the form that the converter takes as it is meant: checked names,
// known types, bounded numbers, only the records that matter. It returns the number of entries and reads the stream
// to its end.
func refine(in *input, w io.Writer) (int, error) {
	tr := tar.NewReader(in)
	out := &encoder{w: w, buf: make([]byte, 256<<10)}
	entries := 0
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return entries, badStream(err)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader { // defaults for what follows (git archive's comment), not an entry
			continue
		}
		if entries++; entries > in.most {
			return entries, fault.New(fault.Invalid, "tar stream has more than %d entries", in.most).
				WithHint("banger config set limits.image_entries %d", min(2*in.most, maxEntries))
		}
		refined, err := entry(hdr)
		if err == nil {
			err = badStream(out.entry(refined, tr))
		}
		if err != nil {
			return entries, fault.Context(err, "tar entry %q", short(hdr.Name))
		}
	}
	// The tar reader takes the end of the stream for the end of the archive. Without the two zero blocks it was cut.
	if in.ended {
		return entries, badStream(io.ErrUnexpectedEOF)
	}
	n, err := io.Copy(io.Discard, io.LimitReader(in, maxTrailer))
	switch {
	case err != nil:
		return entries, badStream(err)
	case n == maxTrailer:
		return entries, fault.New(fault.Invalid, "tar stream goes on after its end marker")
	}
	return entries, out.end()
}

// onlyReader and onlyWriter hide ReadFrom and WriteTo, so that io.CopyBuffer uses the buffer it is given.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// badStream gives the errors of the tar format a class; a failure of the sender keeps its own.
func badStream(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Invalid, "tar stream was cut off")
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fault.Wrap(fault.Invalid, err, "tar stream")
	}
	return err
}

// stamp is the time that the converter has to be given for t. It takes the low 34 bits of the seconds for what ext4
// stores: a signed number of 32 bits, and two bits that count how often 2^32 is to be added. The same thing it is only
// before 2038.
func stamp(t time.Time) time.Time {
	const first, last = -1 << 31, 0x27fffffff // the converter takes no later ones for what they are
	seconds := min(max(t.Unix(), first), last)
	low := int64(int32(seconds))
	return time.Unix(seconds-low+int64(uint32(low)), int64(t.Nanosecond()))
}

// entry returns the header that the converter gets for hdr.
func entry(hdr *tar.Header) (*tar.Header, error) {
	name, err := cleanPath(hdr.Name)
	if err != nil {
		return nil, err
	}
	if name == "./" && hdr.Typeflag != tar.TypeDir {
		return nil, fault.New(fault.Invalid, "the root must be a directory")
	}
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > 1<<32-2 || int64(hdr.Gid) > 1<<32-2 {
		return nil, fault.New(fault.Invalid, "owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	when := stamp(hdr.ModTime)
	out := &tar.Header{
		Typeflag: hdr.Typeflag, Name: name, Mode: hdr.Mode & 0o7777, Uid: hdr.Uid, Gid: hdr.Gid,
		ModTime: when, AccessTime: when, ChangeTime: when, Format: tar.FormatPAX,
	}
	switch hdr.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse: // a sparse file is read with its holes filled
		out.Typeflag, out.Size = tar.TypeReg, hdr.Size
		if hdr.Size > maxFileSize {
			return nil, fault.New(fault.Invalid, "file of %d bytes is too big", hdr.Size)
		}
	case tar.TypeLink:
		out.Linkname, err = cleanPath(hdr.Linkname)
	case tar.TypeSymlink:
		out.Linkname = hdr.Linkname
		if len(hdr.Linkname) == 0 || len(hdr.Linkname) > maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			err = fault.New(fault.Invalid, "symbolic link has a bad target")
		}
	case tar.TypeChar, tar.TypeBlock:
		out.Devmajor, out.Devminor = hdr.Devmajor, hdr.Devminor
		if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
			err = fault.New(fault.Invalid, "device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
	case tar.TypeDir, tar.TypeFifo:
	default:
		err = fault.New(fault.Invalid, "unknown type %q", hdr.Typeflag)
	}
	if err != nil {
		return nil, err
	}
	if hdr.Typeflag != tar.TypeLink {
		out.PAXRecords, err = xattrs(hdr.PAXRecords)
	}
	return out, err
}

// cleanPath makes a name relative to the root whatever it tries; "./" is the root itself.
func cleanPath(name string) (string, error) {
	if len(name) > maxPath || strings.IndexByte(name, 0) >= 0 {
		return "", fault.New(fault.Invalid, "bad path")
	}
	clean := path.Clean("/" + name)
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > maxName {
			return "", fault.New(fault.Invalid, "name of %d bytes is longer than %d", len(part), maxName)
		}
	}
	return "." + clean, nil
}

const xattrPrefix = "SCHILY.xattr."

// xattrs returns the records of extended attributes, in the form in which they lie on the disk. Those that Linux would
// not take for a file on ext4 either are left out.
func xattrs(records map[string]string) (out map[string]string, err error) {
	for key, value := range records {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			continue
		}
		if len(name) > maxName {
			return nil, fault.New(fault.Invalid, "extended attribute %q has a bad name", short(name))
		}
		if name == "system.posix_acl_access" || name == "system.posix_acl_default" {
			if value, err = diskACL(value); err != nil {
				return nil, err
			}
		} else if namespace, rest, _ := strings.Cut(name, "."); !slices.Contains(namespaces, namespace) {
			continue
		} else if rest == "" {
			return nil, fault.New(fault.Invalid, "extended attribute %q has a bad name", short(name))
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = value
	}
	return out, nil
}

// namespaces of extended attributes that ext4 has.
var namespaces = []string{"user", "trusted", "security"}

// short cuts a name from the stream to what fits in a message.
func short(name string) string {
	if len(name) > 200 {
		return name[:200] + fmt.Sprintf("... (%d bytes)", len(name))
	}
	return name
}
