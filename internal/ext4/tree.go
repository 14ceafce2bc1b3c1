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
	"strings"

	"banger/internal/fault"
)

// Limits of what a stream may hold. Its bytes come from the network or from a guest.
const (
	maxEntries  = 16 << 20
	maxPath     = 4095     // PATH_MAX of Linux without the final NUL
	maxName     = 255      // one component
	maxFileSize = 64 << 30 // what an index of extents in the inode reaches is 170 GiB
	maxTrailer  = 16 << 20 // padding after the end marker; tar pads to 10 KiB
	maxMajor    = 0xfff
	maxMinor    = 0xfffff
)

// input is the raw stream: it counts and hashes every byte and knows whether the sender has ended.
type input struct {
	ctx   context.Context
	r     io.Reader
	hash  hash.Hash // nil: nobody wants it
	most  int       // entries
	read  uint64
	ended bool // the sender has closed the stream
}

func newInput(ctx context.Context, r io.Reader, hashed bool) *input {
	// For the headers. Contents that are larger go past the buffer.
	in := &input{ctx: ctx, r: bufio.NewReaderSize(r, 32<<10), most: maxEntries}
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

// builder makes a tree of a tar stream.
type builder struct {
	root   *Node
	out    *Stream
	dir    string // the directory that the last entry was in: most are in the same one
	parent *Node
}

// build reads the stream to its end. It returns the tree and the number of entries.
func build(in *input, out *Stream) (*Node, int, error) {
	tr := tar.NewReader(in)
	b := &builder{root: NewDir(), out: out}
	entries := 0
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, entries, badStream(err)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader { // defaults for what follows (git archive's comment), not an entry
			continue
		}
		if entries++; entries > in.most {
			return nil, entries, fault.New(fault.Invalid, "tar stream has more than %d entries", in.most).
				WithHint("banger config set limits.image_entries %d", min(2*in.most, maxEntries))
		}
		if err := b.entry(hdr, tr); err != nil {
			return nil, entries, fault.Context(badStream(err), "tar entry %q", short(hdr.Name))
		}
	}
	// The tar reader takes the end of the stream for the end of the archive. Without the two zero blocks it was cut.
	if in.ended {
		return nil, entries, badStream(io.ErrUnexpectedEOF)
	}
	n, err := io.Copy(io.Discard, io.LimitReader(in, maxTrailer))
	switch {
	case err != nil:
		return nil, entries, badStream(err)
	case n == maxTrailer:
		return nil, entries, fault.New(fault.Invalid, "tar stream goes on after its end marker")
	}
	return b.root, entries, nil
}

// entry adds one entry, with its contents.
func (b *builder) entry(hdr *tar.Header, contents io.Reader) error {
	name, err := cleanPath(hdr.Name)
	if err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeLink {
		return b.link(name, hdr.Linkname)
	}
	n, err := newNode(hdr)
	if err != nil {
		return err
	}
	if name == "" {
		if !n.IsDir() {
			return fault.New(fault.Invalid, "the root must be a directory")
		}
		n.Children = b.root.Children
		*b.root = *n
		return nil
	}
	parent, base, err := b.place(name)
	if err != nil {
		return err
	}
	switch old := parent.Children[base]; {
	case old == nil:
		parent.Children[base] = n
	case old.IsDir() && n.IsDir():
		n.Children = old.Children
		*old = *n
		return nil
	default:
		return fault.New(fault.Invalid, "it would overwrite an entry of the same name")
	}
	n.Contents, err = b.out.Put(contents, n.Size)
	return err
}

// link adds one more name of an entry that has come.
func (b *builder) link(name, target string) error {
	target, err := cleanPath(target)
	if err != nil {
		return err
	}
	dir, base := path.Split(target)
	n := b.root
	for part := range strings.SplitSeq(dir+base, "/") {
		if n = n.Children[part]; n == nil {
			return fault.New(fault.Invalid, "hard link to %q, which is not found", short(target))
		}
	}
	if n.IsDir() {
		return fault.New(fault.Invalid, "hard link to %q, which is a directory", short(target))
	}
	parent, base, err := b.place(name)
	if err != nil {
		return err
	}
	if parent.Children[base] != nil {
		return fault.New(fault.Invalid, "it would overwrite an entry of the same name")
	}
	parent.Children[base] = n
	return nil
}

// place returns the directory of a name. Those that have not come are as their parents until they do.
func (b *builder) place(name string) (parent *Node, base string, err error) {
	dir, base := path.Split(name)
	if b.parent != nil && dir == b.dir {
		return b.parent, base, nil
	}
	parent = b.root
	for part := range strings.SplitSeq(strings.TrimSuffix(dir, "/"), "/") {
		if part == "" {
			continue
		}
		next := parent.Children[part]
		if next == nil {
			next = NewDir()
			next.Mode, next.UID, next.GID, next.ModTime = parent.Mode, parent.UID, parent.GID, parent.ModTime
			parent.Children[part] = next
		}
		if !next.IsDir() {
			return nil, "", fault.New(fault.Invalid, "path not found: %q is not a directory", short(part))
		}
		parent = next
	}
	b.dir, b.parent = dir, parent
	return parent, base, nil
}

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

// newNode returns what hdr says of anything but a hard link.
func newNode(hdr *tar.Header) (*Node, error) {
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > 1<<32-2 || int64(hdr.Gid) > 1<<32-2 {
		return nil, fault.New(fault.Invalid, "owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	n := &Node{
		Type: hdr.Typeflag, Mode: uint32(hdr.Mode & 0o7777), UID: uint32(hdr.Uid), GID: uint32(hdr.Gid), ModTime: hdr.ModTime,
	}
	switch hdr.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse: // a sparse file is read with its holes filled
		n.Type, n.Size = tar.TypeReg, hdr.Size
	case tar.TypeSymlink:
		n.Linkname = hdr.Linkname
		if len(hdr.Linkname) == 0 || len(hdr.Linkname) > maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return nil, fault.New(fault.Invalid, "symbolic link has a bad target")
		}
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
			return nil, fault.New(fault.Invalid, "device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		n.Devmajor, n.Devminor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	case tar.TypeDir:
		n.Children = map[string]*Node{}
	case tar.TypeFifo:
	default:
		return nil, fault.New(fault.Invalid, "unknown type %q", hdr.Typeflag)
	}
	for key, value := range hdr.PAXRecords {
		if attr, ok := strings.CutPrefix(key, xattrPrefix); ok {
			if n.Xattrs == nil {
				n.Xattrs = map[string]string{}
			}
			n.Xattrs[attr] = value
		}
	}
	_, _, err := encodeXattrs(n.Xattrs)
	return n, err
}

// cleanPath makes a name relative to the root, whatever it tries; "" is the root itself.
func cleanPath(name string) (string, error) {
	if len(name) > maxPath || strings.IndexByte(name, 0) >= 0 {
		return "", fault.New(fault.Invalid, "bad path")
	}
	clean := path.Clean("/" + name)[1:]
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > maxName {
			return "", fault.New(fault.Invalid, "name of %d bytes is longer than %d", len(part), maxName)
		}
	}
	return clean, nil
}

const xattrPrefix = "SCHILY.xattr."

// short cuts a name from the stream to what fits in a message.
func short(name string) string {
	if len(name) > 200 {
		return name[:200] + fmt.Sprintf("... (%d bytes)", len(name))
	}
	return name
}
