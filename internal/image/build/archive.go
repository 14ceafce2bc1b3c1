package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
	"banger/internal/vm"
)

// maxUnpacked bounds what one archive may hold, uncompressed, unless the limits of layers do.
const maxUnpacked = 64 << 30

// cancellable is a reader that ends with ctx.
type cancellable struct {
	ctx context.Context
	r   io.Reader
}

func (c cancellable) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// archive is a local tar file that ADD unpacks. It is read twice: to find out where everything goes, and for the layer.
type archive struct {
	file  *node
	limit int64          // of its uncompressed bytes
	paths map[int]string // where each entry goes, by its number
}

// member says which entry of which archive a node is.
type member struct {
	archive *archive
	number  int
	linked  bool // another entry is a hard link to it
}

// unpacks reports whether ADD tries to unpack a source.
func unpacks(c *dockerfile.Copy, s picked) bool {
	if s.top.typ != tar.TypeReg {
		return false
	}
	if c.Unpack != nil {
		return *c.Unpack
	}
	return s.local
}

// read calls each for the entries of an archive, with their numbers. It returns false if the file is none.
func (a *archive) read(ctx context.Context, each func(i int, hdr *tar.Header, contents io.Reader) error) (bool, error) {
	f, err := a.file.from.open(ctx, a.file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	plain, done, err := decompress(f)
	if err != nil {
		return false, nil // whatever it is, docker copies what it cannot read as an archive
	}
	defer done()
	limited := &io.LimitedReader{R: cancellable{ctx, plain}, N: a.limit}
	tr := tar.NewReader(limited)
	for i := 0; ; i++ {
		if err := context.Cause(ctx); err != nil {
			return true, err
		}
		hdr, err := tr.Next()
		switch {
		case i == 0 && err != nil:
			return false, nil
		case limited.N <= 0:
			return true, fault.New(fault.Exhausted, "it holds more than %s", vm.FormatSize(uint64(a.limit)))
		case errors.Is(err, io.EOF):
			return true, nil
		case context.Cause(ctx) != nil:
			return true, context.Cause(ctx)
		case err != nil:
			return true, fault.Wrap(fault.Invalid, err, "it is damaged")
		}
		if err := each(i, hdr, tr); err != nil {
			return true, err
		}
	}
}

// decompress tells by the first bytes what a file is compressed with.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	nothing := func() {}
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		zr, err := gzip.NewReader(br)
		return zr, nothing, err
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(br), nothing, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		zr, err := xz.NewReader(br, 128<<20)
		return zr, nothing, err
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return zr, zr.Close, nil
	}
	return br, nothing, nil
}

// unpack places what is in an archive below the destination. It returns false if the file is no archive. As docker does
// it, symbolic links do not lead out of the destination, and an entry replaces what is in its way, except that a
// directory stays.
func (p *placer) unpack(dest string, s picked) (bool, error) {
	a := &archive{file: s.top, limit: p.limit, paths: map[int]string{}}
	root := ""
	ok, err := a.read(p.ctx, func(i int, hdr *tar.Header, _ io.Reader) (err error) {
		if root == "" {
			if root, err = p.makeDirs(dest); err != nil {
				return err
			}
		}
		return p.entry(a, root, i, hdr)
	})
	if ok && err == nil {
		p.archives = append(p.archives, a)
	}
	return ok, err
}

// entry places one entry of an archive.
func (p *placer) entry(a *archive, root string, i int, hdr *tar.Header) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return fault.New(fault.Invalid, "%s has the unknown type %q", shown(hdr.Name), hdr.Typeflag)
	}
	at, err := p.entryPath(root, hdr.Name)
	if err != nil || at == root {
		return err
	}
	if _, err := p.makeDirs(path.Dir(at)); err != nil {
		return err
	}
	n := headerNode(hdr, at)
	n.xattrs, n.member = xattrsOf(hdr), &member{archive: a, number: i}
	if hdr.Typeflag == tar.TypeLink {
		if n.link, err = p.linkTarget(a, root, at, hdr); err != nil {
			return err
		}
	}
	if err := p.clear(at, n); err != nil {
		return err
	}
	a.paths[i] = at
	return p.put(at, p.dressed(n))
}

// linkTarget returns what a hard link of an archive is made to: an entry before it.
func (p *placer) linkTarget(a *archive, root, at string, hdr *tar.Header) (string, error) {
	target, err := p.entryPath(root, hdr.Linkname)
	if err != nil {
		return "", err
	}
	there := p.items[target]
	if there == nil || there.member == nil || there.member.archive != a || there.isDir() || target == at {
		return "", fault.New(fault.Invalid, "%s is a hard link to %s, which is not before it in the archive", shown(hdr.Name), shown(hdr.Linkname))
	}
	there.member.linked = true
	return target, nil
}

// entryPath is where a name of an archive leads below root.
func (p *placer) entryPath(root, name string) (string, error) {
	clean := path.Clean(name)
	if clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0) {
		return "", fault.New(fault.Invalid, "the name %s leads out of the archive", shown(name))
	}
	at, err := follow(p.root.find, root, clean, false)
	return at, err
}

// clear takes away what is in the way of an entry.
func (p *placer) clear(at string, n *node) error {
	there, err := p.root.find(at)
	if err != nil || there == nil || there.isDir() && n.isDir() {
		return err
	}
	if there.isDir() {
		for other, n := range p.items {
			if !strings.HasPrefix(other, at+"/") {
				continue
			}
			if err := n.replaceable(other); err != nil {
				return err
			}
			delete(p.items, other)
		}
	}
	return p.root.put(at, nil)
}

// replaceable refuses to lose what a hard link is made to: the link comes later in the layer.
func (n *node) replaceable(at string) error {
	if n != nil && n.member != nil && n.member.linked {
		return fault.New(fault.Invalid, "%s is replaced after a hard link to it: ADD what replaces it in a step of its own", shown(at))
	}
	return nil
}

// xattrsOf are the extended attributes that an archive has for a file.
func xattrsOf(hdr *tar.Header) map[string]string {
	var out map[string]string
	for record, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(record, "SCHILY.xattr.")
		if !ok || name == "security.selinux" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = value
	}
	return out
}

// write writes the entries that no other one has replaced, in the order of the archive.
func (a *archive) write(w *layerWriter, items map[string]*node) error {
	ok, err := a.read(w.ctx, func(i int, hdr *tar.Header, contents io.Reader) error {
		at := a.paths[i]
		n := items[at]
		if n == nil || n.isDir() || n.member == nil || n.member.archive != a || n.member.number != i {
			return nil
		}
		out := n.header(at)
		if hdr.Typeflag == tar.TypeLink {
			out.Typeflag, out.Linkname, out.Size = tar.TypeLink, strings.TrimPrefix(n.link, "/"), 0
		}
		if err := w.tar.WriteHeader(out); err != nil {
			return fault.Context(err, "%s", shown(at))
		}
		if out.Typeflag != tar.TypeReg {
			return nil
		}
		_, err := io.Copy(w.tar, contents)
		return err
	})
	if err == nil && !ok {
		err = changed(a.file.at)
	}
	return err
}
