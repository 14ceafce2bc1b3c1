package build

import (
	"archive/tar"
	"context"
	"path"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
)

// placer finds out where in a stage the files of one step go, and what has to be in the layer for that. The rules are
// those of BuildKit:
//   - The destination is resolved in the stage with all its symbolic links. What is missing of it is made, for root or
//     --chown, with 0755 or the number of --chmod.
//   - A source that is a directory puts what is in it into the destination, one that is a file becomes the destination,
//     or goes into it if that is a directory or has a slash at its end.
//   - Below that nothing is followed: a symbolic link in the stage is replaced by a file, and in the way of a directory.
//   - A file does not replace a directory. A directory that is there has the owner, mode and time of the copied one
//     afterwards, except for the destination itself.
type placer struct {
	ctx   context.Context
	root  *rootfs
	owner *owner // of everything; nil: files keep theirs and root has new directories
	chmod *dockerfile.Chmod

	items    map[string]*node // what goes into the layer, by path
	archives []*archive
	now      time.Time // of directories that are made
	limit    int64     // of what an archive holds
}

func newPlacer(ctx context.Context, root *rootfs) *placer {
	return &placer{ctx: ctx, root: root, items: map[string]*node{}, now: old, limit: maxUnpacked}
}

// place puts the sources of a COPY at their destination.
func (p *placer) place(c *dockerfile.Copy, sources []picked) error {
	slash := strings.HasSuffix(c.Dest, "/")
	files := 0
	for _, s := range sources {
		if !s.top.isDir() {
			files++
		}
	}
	if files > 1 && !slash {
		if err := p.needDir(c.Dest); err != nil {
			return err
		}
	}
	for _, s := range sources {
		p.now = newest(s)
		if c.Add && unpacks(c, s) {
			done, err := p.unpack(c.Dest, s)
			if err != nil {
				return fault.Context(err, "unpack %s", shown(s.word))
			}
			if done {
				continue
			}
		}
		if err := p.source(c.Dest, slash, s); err != nil {
			return err
		}
	}
	return nil
}

// needDir refuses a destination that would be overwritten by one file after the other.
func (p *placer) needDir(dest string) error {
	at, err := follow(p.root.find, "/", dest, true)
	if err != nil {
		return err
	}
	n, err := p.root.find(at)
	if err == nil && (n == nil || !n.isDir()) {
		err = fault.New(fault.Invalid, "several files need a directory: write the destination as %s/", dest)
	}
	return err
}

// newest is the time of the newest file, for directories that are made for it: so they have the same time whenever the
// step is carried out.
func newest(s picked) time.Time {
	at := old
	for _, n := range s.nodes() {
		if n.typ == tar.TypeReg && n.mtime.After(at) {
			at = n.mtime
		}
	}
	return at
}

// source places one source.
func (p *placer) source(dest string, slash bool, s picked) error {
	ensure := dest
	if !slash {
		ensure = path.Dir(dest)
	}
	if _, err := p.makeDirs(ensure); err != nil {
		return err
	}
	at, err := follow(p.root.find, "/", dest, true)
	if err != nil {
		return err
	}
	there, err := p.root.find(at)
	if err != nil {
		return err
	}
	if s.top.isDir() {
		return p.contents(at, there, s)
	}
	if there != nil && there.isDir() {
		at = path.Join(at, s.name)
	}
	if _, err := p.makeDirs(path.Dir(at)); err != nil {
		return err
	}
	return p.add(at, s.top)
}

// contents places what is in a directory at the destination, which gets nothing of the directory but its time if it is
// new.
func (p *placer) contents(at string, there *node, s picked) error {
	if there == nil {
		p.now = s.top.mtime
	}
	if _, err := p.makeDirs(at); err != nil {
		return err
	}
	for _, b := range s.below {
		if err := p.add(path.Join(at, b.rel), b.node); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs makes the directories of a path that are missing, symbolic links followed, and returns where it leads.
func (p *placer) makeDirs(dest string) (string, error) {
	at, err := follow(p.root.find, "/", dest, true)
	if err != nil {
		return "", err
	}
	dir := "/"
	for part := range strings.SplitSeq(strings.TrimPrefix(at, "/"), "/") {
		dir = path.Join(dir, part)
		n, err := p.root.find(dir)
		if err != nil {
			return "", err
		}
		if n != nil && !n.isDir() {
			return "", fault.New(fault.Invalid, "%s is not a directory in the stage", dir)
		}
		if n != nil {
			continue
		}
		made := &node{typ: tar.TypeDir, mode: 0o755, mtime: p.now, at: dir}
		if p.owner != nil {
			made.uid, made.gid = p.owner.uid, p.owner.gid
		}
		if p.chmod != nil {
			if mode, ok := p.chmod.Octal(); ok {
				made.mode = mode
			}
		}
		if err := p.put(dir, made); err != nil {
			return "", err
		}
	}
	return at, nil
}

// add places a copy of n, with the owner and mode of the step.
func (p *placer) add(at string, n *node) error {
	there, err := p.root.find(at)
	if err != nil {
		return err
	}
	if there != nil && there.isDir() != n.isDir() {
		if n.isDir() {
			return fault.New(fault.Invalid, "%s is a directory, but not in the stage: RUN rm %s before", shown(n.at), at)
		}
		return fault.New(fault.Invalid, "%s is a directory in the stage: a file cannot replace it", at)
	}
	return p.put(at, p.dressed(n))
}

// dressed is n with the owner and mode of the step.
func (p *placer) dressed(n *node) *node {
	if p.owner == nil && p.chmod == nil {
		return n
	}
	out := *n
	if p.owner != nil {
		out.uid, out.gid = p.owner.uid, p.owner.gid
	}
	if p.chmod != nil && n.typ != tar.TypeSymlink {
		out.mode = p.chmod.Apply(n.mode, n.isDir())
	}
	return &out
}

func (p *placer) put(at string, n *node) error {
	if strings.HasPrefix(path.Base(at), ".wh.") {
		return fault.New(fault.Invalid, "%s cannot be in an image: a name with .wh. at its beginning means a deleted file", shown(at))
	}
	if at == "/" {
		return nil
	}
	if len(p.items) > maxPicked {
		return fault.New(fault.Exhausted, "more than %d files", maxPicked)
	}
	if err := p.items[at].replaceable(at); err != nil {
		return err
	}
	p.items[at] = n
	return p.root.put(at, n)
}
