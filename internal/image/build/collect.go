package build

import (
	"archive/tar"
	"context"
	"fmt"
	"path"
	"strings"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
	"banger/internal/vm"
)

// maxPicked bounds the files of one COPY; each takes some hundred bytes here.
const maxPicked = 4 << 20

// origin is where files are copied from.
type origin interface {
	find(at string) (*node, error)
	list(at string) ([]*node, error) // of a directory, in the order of names
}

// picked is one source of a COPY with all that is below it.
type picked struct {
	word  string  // as in the Dockerfile
	name  string  // of the source itself, for a destination that is a directory
	top   *node   // a file or a directory
	below []below // of a directory, each one after the directory that it is in
	local bool    // from the build context: ADD unpacks archives there

	// bring fills in top, whose digest is known, when its contents are needed after all; nil: it is there.
	bring func(ctx context.Context) error
}

// below is something in a directory that is copied.
type below struct {
	rel  string // from the directory: "a/b"
	node *node
}

// collector finds the files of one COPY.
type collector struct {
	ctx     context.Context
	origin  origin
	ignore  *dockerfile.Matcher // of the context: paths from its root
	exclude *dockerfile.Matcher // --exclude: paths from the source
	note    func(format string, args ...any)

	count int
	out   []picked
}

// filter is what the matchers say about a directory, for what is in it.
type filter struct{ ignore, exclude, include dockerfile.Match }

// collect returns the sources of c in o. What is not there is an error, unless a wildcard did not find it.
func (sb *stageBuild) collect(ctx context.Context, c *dockerfile.Copy, o origin, note func(string, ...any)) ([]picked, error) {
	col := &collector{ctx: ctx, origin: o, exclude: dockerfile.NewMatcher(c.Exclude), ignore: dockerfile.NewMatcher(nil), note: note}
	if tree, ok := o.(*contextTree); ok {
		col.ignore = tree.ignore.Matcher()
	}
	for _, word := range c.Sources {
		var err error
		switch {
		case c.Add && dockerfile.IsURL(word):
			err = sb.collectURL(col, c, word)
		case c.Parents:
			err = col.parents(word)
		default:
			err = col.source(word)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, doc := range c.Contents {
		col.out = append(col.out, picked{word: doc.Name, name: doc.Name, top: memoryNode(doc.Name, doc.Data, 0o644)})
	}
	return col.out, nil
}

// source collects what one word names.
func (c *collector) source(word string) error {
	clean := path.Clean("/" + word)
	fixed, wild := splitWildcards(clean)
	if wild == "" {
		found, err := c.one(word, clean)
		if err == nil && !found {
			err = c.missing(word, clean)
		}
		return err
	}
	dir, err := follow(c.origin.find, "/", fixed, true)
	if err != nil {
		return err
	}
	before := len(c.out)
	if err := c.glob(word, dir, strings.Split(wild, "/")); err != nil {
		return err
	}
	if len(c.out) == before {
		c.note("warning: nothing fits %s", shown(word))
	}
	return nil
}

// glob collects what fits the parts of a pattern below dir.
func (c *collector) glob(word, dir string, parts []string) error {
	n, err := c.origin.find(dir)
	if err != nil || n == nil || !n.isDir() {
		return err
	}
	children, err := c.origin.list(dir)
	if err != nil {
		return err
	}
	for _, child := range children {
		fits, err := path.Match(parts[0], path.Base(child.at))
		if err != nil {
			return fault.New(fault.Invalid, "%s is not a pattern", shown(word))
		}
		if !fits {
			continue
		}
		if len(parts) > 1 {
			err = c.glob(word, child.at, parts[1:])
		} else {
			_, err = c.one(word, child.at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// one collects what is at a path, symbolic links followed. It returns false if there is nothing.
func (c *collector) one(word, at string) (bool, error) {
	real, err := follow(c.origin.find, "/", at, true)
	if err != nil {
		return false, err
	}
	n, err := c.origin.find(real)
	if err != nil || n == nil {
		return false, err
	}
	f, err := c.filterOf(real)
	if err != nil {
		return false, err
	}
	if !n.isDir() {
		if excluded, err := c.exclude.MatchPath(path.Base(at)); err != nil || excluded || f.ignore.Matched {
			return excluded, err
		}
		if n.typ == 0 {
			return false, fault.New(fault.Invalid, "%s is a socket, a pipe or a device", shown(at))
		}
		return true, c.add(picked{word: word, name: path.Base(at), top: n})
	}
	p := picked{word: word, name: path.Base(at), top: n}
	w := &walker{collector: c, to: &p}
	if err := w.walk(real, "", f); err != nil {
		return false, err
	}
	// A directory that is ignored counts only for what is taken out of it again.
	if f.ignore.Matched && len(p.below) == 0 {
		return false, nil
	}
	return true, c.add(p)
}

func (c *collector) add(p picked) error {
	_, p.local = c.origin.(*contextTree)
	c.out = append(c.out, p)
	return nil
}

// filterOf asks .dockerignore about a path and all directories on the way to it.
func (c *collector) filterOf(at string) (filter, error) {
	var f filter
	rel := strings.TrimPrefix(at, "/")
	for i := range rel + "/" {
		if i < len(rel) && rel[i] != '/' || i == 0 {
			continue
		}
		var err error
		if f.ignore, err = c.ignore.Match(rel[:i], f.ignore); err != nil {
			return f, err
		}
	}
	return f, nil
}

// missing is the error about a source that is not there.
func (c *collector) missing(word, at string) error {
	ctxTree, ok := c.origin.(*contextTree)
	if !ok {
		return fault.New(fault.NotFound, "%s is not there", shown(word))
	}
	if n, err := c.origin.find(at); err == nil && n != nil {
		if n.typ == tar.TypeSymlink {
			if f, err := c.filterOf(at); err == nil && !f.ignore.Matched {
				return fault.New(fault.NotFound, "%s is a symbolic link to %s, which is not in the build context", shown(word), shown(n.link))
			}
		}
		return fault.New(fault.NotFound, "%s is not in the build context, because %s excludes it", shown(word), ctxTree.ignore.Name)
	}
	return fault.New(fault.NotFound, "%s is not in the build context", shown(word))
}

// parents collects what fits a word of COPY --parents, with the directories that it is in. A "/./" in it is where these
// begin.
func (c *collector) parents(word string) error {
	dir, pattern, ok := strings.Cut(word, "/./")
	if !ok {
		dir, pattern = "", word
	}
	pattern = strings.TrimPrefix(path.Clean("/"+pattern), "/")
	at, err := follow(c.origin.find, "/", dir, true)
	if err != nil {
		return err
	}
	n, err := c.origin.find(at)
	if err != nil {
		return err
	}
	if n == nil || !n.isDir() {
		return c.missing(word, at)
	}
	f, err := c.filterOf(at)
	if err != nil {
		return err
	}
	fixed, wild := splitWildcards("/" + pattern)
	p := picked{word: word, name: path.Base(at), top: n}
	w := &walker{collector: c, to: &p, include: dockerfile.NewMatcher([]string{pattern}), prefix: strings.TrimPrefix(fixed, "/")}
	if pattern == "" {
		w.include = nil
	} else if _, err := w.include.MatchPath("x"); err != nil {
		return fault.New(fault.Invalid, "%s is not a pattern", shown(word))
	}
	if err := w.walk(at, "", f); err != nil {
		return err
	}
	if len(p.below) == 0 {
		if wild == "" && pattern != "" {
			return c.missing(word, path.Join(at, pattern))
		}
		c.note("warning: nothing fits %s", shown(word))
		return nil
	}
	return c.add(p)
}

// walker collects what is below one directory.
type walker struct {
	*collector
	to      *picked
	include *dockerfile.Matcher // --parents: paths from the source; nil: everything
	prefix  string              // directories that all of include are in

	// waiting are directories that are left out, unless something in them is not.
	waiting []below
}

// walk goes through the directory at, which is rel from the source.
func (w *walker) walk(at, rel string, f filter) error {
	children, err := w.origin.list(at)
	if err != nil {
		return err
	}
	for _, n := range children {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		b := below{path.Join(rel, path.Base(n.at)), n}
		child, hidden, err := w.match(b, f)
		if err != nil {
			return err
		}
		switch {
		case n.isDir():
			err = w.enter(b, child, hidden)
		case hidden:
		case n.typ == 0:
			w.note("%s is left out: it is a socket, a pipe or a device", shown(n.at))
		default:
			err = w.take(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// match asks all patterns about b; f are their answers for the directory that it is in.
func (w *walker) match(b below, f filter) (child filter, hidden bool, err error) {
	if child.ignore, err = w.ignore.Match(strings.TrimPrefix(b.node.at, "/"), f.ignore); err != nil {
		return child, false, err
	}
	if child.exclude, err = w.exclude.Match(b.rel, f.exclude); err != nil {
		return child, false, err
	}
	hidden = child.ignore.Matched || child.exclude.Matched
	if w.include != nil {
		if child.include, err = w.include.Match(b.rel, f.include); err != nil {
			return child, false, err
		}
		hidden = hidden || !child.include.Matched
	}
	return child, hidden, nil
}

// enter goes into a directory, unless nothing in it can be wanted.
func (w *walker) enter(b below, f filter, hidden bool) error {
	if !hidden {
		if err := w.take(b); err != nil {
			return err
		}
		return w.walk(b.node.at, b.rel, f)
	}
	if f.ignore.Matched && w.ignore.Prunes() || f.exclude.Matched && w.exclude.Prunes() {
		return nil
	}
	if w.include != nil && !f.include.Matched && !leadsTo(b.rel, w.prefix) {
		return nil
	}
	w.waiting = append(w.waiting, b)
	depth := len(w.waiting)
	err := w.walk(b.node.at, b.rel, f)
	w.waiting = w.waiting[:min(len(w.waiting), depth-1)]
	return err
}

// leadsTo reports whether dir is on the way to prefix or below it.
func leadsTo(dir, prefix string) bool {
	return prefix == "" || dir == prefix || strings.HasPrefix(prefix, dir+"/") || strings.HasPrefix(dir, prefix+"/")
}

// take adds b after the directories that were waiting for something in them.
func (w *walker) take(b below) error {
	w.to.below = append(w.to.below, w.waiting...)
	w.count += len(w.waiting) + 1
	w.waiting = w.waiting[:0]
	w.to.below = append(w.to.below, b)
	if w.count > maxPicked {
		return fault.New(fault.Exhausted, "more than %d files: leave some out with .dockerignore", maxPicked)
	}
	return nil
}

// splitWildcards divides a clean path at its first part with a wildcard.
func splitWildcards(p string) (fixed, wild string) {
	parts := strings.Split(p, "/")
	for i, part := range parts {
		if hasWildcard(part) {
			return path.Join("/", strings.Join(parts[:i], "/")), strings.Join(parts[i:], "/")
		}
	}
	return p, ""
}

func hasWildcard(part string) bool {
	for i := 0; i < len(part); i++ {
		switch part[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// summary counts what was collected, for people.
func summary(sources []picked) string {
	files, bytes := 0, int64(0)
	for _, p := range sources {
		for _, n := range p.nodes() {
			if n.typ == tar.TypeReg {
				files++
				bytes += n.size
			}
		}
	}
	if files == 1 {
		return "1 file, " + vm.FormatSize(uint64(bytes))
	}
	return fmt.Sprintf("%d files, %s", files, vm.FormatSize(uint64(bytes)))
}

// nodes are the source itself and all that is below it.
func (p picked) nodes() []*node {
	out := make([]*node, 0, len(p.below)+1)
	out = append(out, p.top)
	for _, b := range p.below {
		out = append(out, b.node)
	}
	return out
}
