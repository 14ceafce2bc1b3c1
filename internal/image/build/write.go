package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
	"banger/internal/image/source"
)

// mediaType of the layers that are made here.
const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip"

// layerWriter writes a tar stream, compressed, into the blob store. The same files make the same bytes.
type layerWriter struct {
	ctx   context.Context
	tar   *tar.Writer
	links map[any]string // first path of a file with several
}

// writeLayer writes what was placed: directories and single files in the order of their paths, then what archives hold.
func (b *builder) writeLayer(ctx context.Context, items map[string]*node, archives []*archive) (source.Layer, error) {
	blob, err := b.opt.Blobs.Create()
	if err != nil {
		return source.Layer{}, err
	}
	defer blob.Abort()
	zw, err := gzip.NewWriterLevel(blob, gzip.BestSpeed)
	if err != nil {
		return source.Layer{}, err
	}
	plain := sha256.New()
	w := &layerWriter{ctx: ctx, tar: tar.NewWriter(io.MultiWriter(plain, zw)), links: map[any]string{}}
	for _, at := range slices.Sorted(maps.Keys(items)) {
		if err := w.write(at, items[at]); err != nil {
			return source.Layer{}, err
		}
	}
	for _, a := range archives {
		if err := a.write(w, items); err != nil {
			return source.Layer{}, err
		}
	}
	if err := w.tar.Close(); err != nil {
		return source.Layer{}, err
	}
	if err := zw.Close(); err != nil {
		return source.Layer{}, err
	}
	digest, size, err := blob.Commit()
	return source.Layer{MediaType: mediaType, Digest: digest, Size: size, DiffID: "sha256:" + hex.EncodeToString(plain.Sum(nil))}, err
}

// write writes one entry. What is in an archive waits until that is read again, except for directories.
func (w *layerWriter) write(at string, n *node) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if n.member != nil && !n.isDir() {
		return nil
	}
	hdr := n.header(at)
	if n.typ == tar.TypeReg && n.same != nil {
		if first, ok := w.links[n.same]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return w.tar.WriteHeader(hdr)
		}
		w.links[n.same] = hdr.Name
	}
	if err := w.tar.WriteHeader(hdr); err != nil {
		return fault.Context(err, "%s", shown(at))
	}
	if n.typ != tar.TypeReg {
		return nil
	}
	sum := sha256.New()
	if err := n.copyTo(w.ctx, io.MultiWriter(w.tar, sum), func(int64) {}); err != nil {
		return err
	}
	if n.digest != "" && hex.EncodeToString(sum.Sum(nil)) != n.digest {
		return changed(n.at)
	}
	return nil
}

// header is the tar entry of n.
func (n *node) header(at string) *tar.Header {
	hdr := &tar.Header{
		Typeflag: n.typ, Name: strings.TrimPrefix(at, "/"), Mode: n.mode, Uid: n.uid, Gid: n.gid, Linkname: n.link,
		ModTime: n.mtime.Truncate(time.Second), Devmajor: n.major, Devminor: n.minor, Format: tar.FormatPAX,
	}
	switch n.typ {
	case tar.TypeReg:
		hdr.Size = n.size
	case tar.TypeDir:
		hdr.Name += "/"
	case tar.TypeSymlink:
		hdr.Mode = 0o777
	}
	if len(n.xattrs) > 0 {
		hdr.PAXRecords = map[string]string{}
		for name, value := range n.xattrs {
			hdr.PAXRecords["SCHILY.xattr."+name] = value
		}
	}
	return hdr
}

// scriptLayer is a layer with the script of a RUN in it.
func (b *builder) scriptLayer(ctx context.Context, s *dockerfile.Script) (source.Layer, error) {
	return b.writeLayer(ctx, map[string]*node{
		path.Dir(s.Path): {typ: tar.TypeDir, mode: 0o755, mtime: old},
		s.Path:           memoryNode(path.Base(s.Path), s.Data, 0o755),
	}, nil)
}
