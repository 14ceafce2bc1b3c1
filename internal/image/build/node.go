package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"banger/internal/fault"
)

// node is a file, directory or anything else that is copied, or that is in the tree it is copied to.
type node struct {
	typ          byte  // tar.TypeReg, TypeDir, TypeSymlink, TypeChar, TypeBlock or TypeFifo
	mode         int64 // permissions with setuid, setgid and sticky
	uid, gid     int
	size         int64
	mtime        time.Time
	link         string // target of a symbolic link
	major, minor int64
	xattrs       map[string]string
	same         any // equal for all hard links to one file; nil: there is one

	from opener // of a regular file
	at   string // its path there

	digest string    // of a regular file's contents, once they were read
	state  fileState // of a file of the context
	member *member   // of an archive that is being unpacked, or nil
}

// opener opens the contents of its nodes. What was changed since it was looked at is an error, when it is opened or at
// the end of the stream.
type opener interface {
	open(ctx context.Context, n *node) (io.ReadCloser, error)
}

func (n *node) isDir() bool { return n.typ == tar.TypeDir }

// old is the time of what has none of its own: the first that a zip file can have, since some tools fail on earlier ones.
var old = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// sum reads the contents of a regular file and remembers their digest.
func (n *node) sum(ctx context.Context, count func(int64)) error {
	if n.typ != tar.TypeReg || n.digest != "" {
		return nil
	}
	h := sha256.New()
	if err := n.copyTo(ctx, h, count); err != nil {
		return err
	}
	n.digest = hex.EncodeToString(h.Sum(nil))
	if c, ok := n.from.(*contextTree); ok {
		c.learn(n)
	}
	return nil
}

// copyTo writes the contents of a regular file, which have to be as long as they were.
func (n *node) copyTo(ctx context.Context, w io.Writer, count func(int64)) error {
	r, err := n.from.open(ctx, n)
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, min(256<<10, n.size+1))
	var done int64
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		got, err := r.Read(buf)
		if done += int64(got); done > n.size {
			return changed(n.at)
		}
		if _, err := w.Write(buf[:got]); err != nil {
			return err
		}
		count(int64(got))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.Context(err, "%s", n.at)
		}
	}
	if done != n.size {
		return changed(n.at)
	}
	return nil
}

// changed is the error about a file that somebody writes while it is copied.
func changed(name string) error {
	return fault.New(fault.Conflict, "%s was changed while it was read: build again when nobody writes to it", shown(name))
}

// shown is a name from a tree or a context as messages have it: relative, and without what a terminal would obey.
func shown(name string) string {
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		name = "."
	}
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(name, "?"))
	if len(name) > 200 {
		name = name[:100] + "..." + name[len(name)-90:]
	}
	return name
}

// memory is a file whose contents are at hand.
type memory []byte

func (m memory) open(context.Context, *node) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(string(m))), nil
}

func memoryNode(name string, data []byte, mode int64) *node {
	return &node{typ: tar.TypeReg, mode: mode, size: int64(len(data)), mtime: old, from: memory(data), at: name}
}

// maxLinks is how many symbolic links may be on the way to one name, as in Linux (40) with room for odd images.
const maxLinks = 255

// finder looks up what a path names without following a symbolic link at its end. All directories on the way are known to
// be directories. Nothing there is nil.
type finder func(path string) (*node, error)

// follow resolves the symbolic links in name, which is relative to root, also one at its end if last is true. Nothing
// leads out of root: an absolute link begins there, and ".." at the root stays there. What is not there is taken as it
// is named.
func follow(find finder, root, name string, last bool) (string, error) {
	at := root
	links := 0
	for rest := name; rest != ""; {
		part, after, _ := strings.Cut(rest, "/")
		rest = after
		switch part {
		case "", ".":
			continue
		case "..":
			if at != root {
				at = path.Dir(at)
			}
			continue
		}
		child := path.Join(at, part)
		n, err := find(child)
		if err != nil {
			return "", err
		}
		if n == nil || n.typ != tar.TypeSymlink || !last && strings.Trim(rest, "/") == "" {
			at = child
			continue
		}
		if links++; links > maxLinks || len(n.link)+len(rest) > 1<<16 {
			return "", fault.New(fault.Invalid, "too many symbolic links on the way to %s", shown(name))
		}
		if path.IsAbs(n.link) {
			at = root
		}
		rest = n.link + "/" + rest
	}
	return at, nil
}
