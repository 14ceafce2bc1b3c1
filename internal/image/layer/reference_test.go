package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"
	"testing"
	"time"
)

// file is what a test compares of a name in a tree. Names of one file have the same group, which is the first of them.
type file struct {
	Type     string
	Mode     int64
	UID, GID int
	Time     int64
	Link     string
	Xattrs   string
	Device   string
	Body     string
	Group    string
	Links    int
	implied  bool // a directory that no layer mentions: its time is nobody's business
}

// reference is the oracle: a file system as a map from path to file, and the simplest code that does to it what
// unpacking an entry does to a directory. A name of a hard link is the same pointer under two paths.
type reference struct {
	at    map[string]*file
	upper map[string]bool // paths that the current layer has made, and all above them
}

var errReference = errors.New("refused by the reference")

func newReference() *reference {
	return &reference{at: map[string]*file{"": {Type: "dir", Mode: 0o755}}}
}

func (r *reference) layer(data []byte) error {
	r.upper = map[string]bool{}
	layer := bytes.NewReader(data)
	tr := tar.NewReader(layer)
	end := 0 // of the last file
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			if layer.Len() == 0 && len(data)%512 != 0 && len(data) != end { // there is padding, but not all of it
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return err
		}
		end = len(data) - layer.Len() + int(hdr.Size)
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		body, err := io.ReadAll(io.LimitReader(tr, 1<<20))
		if err != nil {
			return err
		}
		if err := r.unpack(hdr, string(body)); err != nil {
			return fmt.Errorf("%q: %w", hdr.Name, err)
		}
	}
}

func (r *reference) unpack(hdr *tar.Header, body string) error {
	name := path.Clean("/" + hdr.Name)[1:]
	if badName(hdr.Name, name) {
		return errReference
	}
	parent, base := path.Split(name)
	dir, err := r.resolve(parent)
	if err != nil {
		return err
	}
	full := strings.TrimPrefix(dir+"/"+base, "/")
	switch {
	case base == ".wh..wh..opq":
		r.removeLower(dir, false)
		return nil
	case strings.HasPrefix(base, ".wh."):
		hidden := strings.TrimPrefix(base, ".wh.")
		if hidden == "" || hidden == "." || hidden == ".." {
			return errReference
		}
		r.removeLower(strings.TrimPrefix(dir+"/"+hidden, "/"), true)
		return nil
	case name == "" && hdr.Typeflag != tar.TypeDir:
		return errReference
	}
	var made *file
	if hdr.Typeflag != tar.TypeLink {
		if made, err = newEntryLike(hdr); err != nil {
			return err
		}
		made.Body = body
	} else if badName(hdr.Linkname, path.Clean("/" + hdr.Linkname)[1:]) {
		return errReference
	}
	if name == "" {
		r.at[""] = made
		r.mark("")
		return nil
	}
	if len(full) > 4095 {
		return errReference
	}
	if err := r.mkdirs(dir); err != nil {
		return err
	}
	if old := r.at[full]; old != nil && !(old.Type == "dir" && hdr.Typeflag == tar.TypeDir) {
		r.removeAll(full)
	}
	if hdr.Typeflag == tar.TypeLink {
		targetParent, targetBase := path.Split(path.Clean("/" + hdr.Linkname)[1:])
		targetDir, err := r.resolve(targetParent)
		if err != nil {
			return err
		}
		made = r.at[strings.TrimPrefix(targetDir+"/"+targetBase, "/")]
		if made == nil || made.Type == "dir" {
			return errReference
		}
	}
	r.at[full] = made
	r.mark(full)
	return nil
}

// resolve follows all symbolic links of a path, inside the root.
func (r *reference) resolve(dir string) (string, error) {
	var done []string
	todo := strings.Split(dir, "/")
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = done[:max(0, len(done)-1)]
			continue
		}
		here := r.at[strings.Join(append(done[:len(done):len(done)], part), "/")]
		if here == nil || here.Type != "symlink" {
			done = append(done, part)
			continue
		}
		if links++; links > 255 {
			return "", errReference
		}
		if strings.HasPrefix(here.Link, "/") {
			done = nil
		}
		todo = append(strings.Split(here.Link, "/"), todo...)
	}
	out := strings.Join(done, "/")
	if len(out) > 4095 {
		return "", errReference
	}
	return out, nil
}

func (r *reference) mkdirs(dir string) error {
	if dir == "" {
		return nil
	}
	parent := strings.TrimSuffix(path.Dir(dir), ".")
	if err := r.mkdirs(parent); err != nil {
		return err
	}
	if old := r.at[dir]; old == nil {
		r.at[dir] = &file{Type: "dir", Mode: 0o755, implied: true}
	} else if old.Type != "dir" {
		return errReference
	}
	return nil
}

func (r *reference) mark(p string) {
	for ; p != ""; p = strings.TrimSuffix(path.Dir(p), ".") {
		r.upper[p] = true
	}
	r.upper[""] = true
}

func (r *reference) removeAll(p string) {
	for other := range r.at {
		if other == p || strings.HasPrefix(other, p+"/") {
			delete(r.at, other)
		}
	}
}

// removeLower removes what the current layer has not made at or below p.
func (r *reference) removeLower(p string, itself bool) {
	if here := r.at[p]; here == nil {
		return
	}
	for other := range r.at {
		if (other == p && itself || other != p && (p == "" || strings.HasPrefix(other, p+"/"))) && !r.upper[other] {
			delete(r.at, other)
		}
	}
}

func badName(raw, clean string) bool {
	if len(raw) > 4095 || strings.Contains(raw, "\x00") {
		return true
	}
	for _, part := range strings.Split(clean, "/") {
		if len(part) > 255 {
			return true
		}
	}
	return false
}

var referenceTypes = map[byte]string{
	tar.TypeReg: "file", tar.TypeCont: "file", tar.TypeGNUSparse: "file", tar.TypeDir: "dir", tar.TypeSymlink: "symlink",
	tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
}

// newEntryLike is what hdr says, without the contents.
func newEntryLike(hdr *tar.Header) (*file, error) {
	f := &file{
		Type: referenceTypes[hdr.Typeflag], Mode: hdr.Mode & 0o7777, UID: hdr.Uid, GID: hdr.Gid, Time: hdr.ModTime.UnixNano(),
	}
	switch {
	case f.Type == "", hdr.Uid < 0, hdr.Gid < 0, hdr.Uid > 1<<32-2, hdr.Gid > 1<<32-2:
		return nil, errReference
	case f.Type == "symlink":
		f.Link, f.Mode = hdr.Linkname, 0o777
		if f.Link == "" || len(f.Link) > 4095 || strings.Contains(f.Link, "\x00") {
			return nil, errReference
		}
	case f.Type == "char" || f.Type == "block":
		f.Device = fmt.Sprintf("%d:%d", hdr.Devmajor, hdr.Devminor)
		if hdr.Devmajor < 0 || hdr.Devmajor > 4095 || hdr.Devminor < 0 || hdr.Devminor > 1048575 {
			return nil, errReference
		}
	}
	var attrs []string
	for key, value := range hdr.PAXRecords {
		attr, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || attr == "security.selinux" || attr == "system.nfs4_acl" || strings.HasPrefix(attr, "trusted.overlay.") {
			continue
		}
		if attr == "" || len(attr) > 255 || strings.Contains(attr, "\x00") {
			return nil, errReference
		}
		attrs = append(attrs, fmt.Sprintf("%q=%q", attr, value))
	}
	sort.Strings(attrs)
	f.Xattrs = strings.Join(attrs, " ")
	return f, nil
}

// files is the result: by path, with hard links named.
func (r *reference) files() map[string]file {
	names := map[*file][]string{}
	for p, f := range r.at {
		names[f] = append(names[f], p)
	}
	out := map[string]file{}
	for f, paths := range names {
		sort.Strings(paths)
		for _, p := range paths {
			c := *f
			c.Group, c.Links = paths[0], len(paths)
			out[p] = c
		}
	}
	return out
}

// readFlat reads a flat stream the way a reader of tar streams would.
func readFlat(t testing.TB, stream io.Reader) map[string]file {
	t.Helper()
	r := newReference()
	seen := map[string]bool{}
	tr := tar.NewReader(stream)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(hdr.Name, "./"), "/")
		if path.Clean("/" + name)[1:] != name || seen[name] {
			t.Fatalf("name %q is not clean or comes twice", hdr.Name)
		}
		seen[name] = true
		if hdr.Typeflag == tar.TypeLink {
			target := r.at[hdr.Linkname]
			if target == nil || target.Type == "dir" {
				t.Fatalf("hard link to %q comes before its target", hdr.Linkname)
			}
			r.at[name] = target
			continue
		}
		f, err := newEntryLike(hdr)
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		var body bytes.Buffer
		if _, err := io.Copy(&body, tr); err != nil {
			t.Fatal(err)
		}
		f.Body = body.String()
		r.at[name] = f
	}
	for name := range r.at {
		if parent := r.at[strings.TrimSuffix(path.Dir(name), ".")]; parent == nil || parent.Type != "dir" {
			t.Fatalf("%q is in no directory", name)
		}
	}
	return r.files()
}

var testTime = time.Unix(1700000000, 123456789)
