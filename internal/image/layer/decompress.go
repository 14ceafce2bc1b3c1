package layer

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"banger/internal/fault"
)

// maxWindow bounds what a decoder remembers of its own output. zstd --ultra -22 needs all of it.
const maxWindow = 128 << 20

// layerTypes are the media types of layers without their compression.
var layerTypes = []string{
	"application/vnd.oci.image.layer.v1.tar",
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
}

// compressions by the first bytes of what they make.
var compressions = []struct{ name, magic string }{
	{"gzip", "\x1f\x8b"},
	{"zstd", "\x28\xb5\x2f\xfd"},
	{"xz", "\xfd7zXZ\x00"},
}

// Decompress returns the uncompressed stream of a blob. What the blob is compressed with (gzip, zstd, xz, nothing) is
// told by its first bytes, since media types are often wrong about that; but it must be one of a layer, or empty. Data
// that is cut off or damaged comes out of Read as a fault. Close does not close r.
func Decompress(mediaType string, r io.Reader) (io.ReadCloser, error) {
	said, err := compressionOf(mediaType)
	if err != nil {
		return nil, err
	}
	source := &source{r: r}
	br := bufio.NewReaderSize(source, 256<<10)
	head, _ := br.Peek(512) // a failure comes again with the first Read
	if source.err != nil {
		return nil, source.err
	}
	name := ""
	for _, c := range compressions {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			name = c.name
		}
	}
	if name == "" && said != "" && !isTar(head) {
		return nil, fault.New(fault.Invalid, "it is not %s data, as its media type says", said)
	}
	out := &decoder{source: source, name: name, r: br}
	switch name {
	case "gzip":
		var zr *gzip.Reader
		if zr, err = gzip.NewReader(br); err == nil {
			zr.Multistream(false)
			out.r, out.close = &gzipReader{zr, br}, func() { zr.Close() }
		}
	case "zstd":
		var zr *zstd.Decoder
		if zr, err = zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			out.r, out.close = zr, zr.Close
		}
	case "xz":
		out.r, err = xz.NewReader(br, maxWindow)
	}
	if err != nil {
		return nil, out.explain(err)
	}
	return out, nil
}

// compressionOf returns the compression that the media type of a layer names; empty for none.
func compressionOf(mediaType string) (string, error) {
	base, _, _ := strings.Cut(strings.ToLower(mediaType), ";")
	base = strings.TrimSpace(base)
	if base == "" {
		return "", nil
	}
	for _, known := range layerTypes {
		rest, ok := strings.CutPrefix(base, known)
		if !ok {
			continue
		}
		switch rest {
		case "":
			return "", nil
		case "+gzip", ".gzip":
			return "gzip", nil
		case "+zstd", ".zstd":
			return "zstd", nil
		}
		if strings.Contains(rest, "encrypted") {
			return "", fault.New(fault.Invalid, "it is encrypted (media type %q)", short(mediaType))
		}
	}
	return "", fault.New(fault.Invalid, "unknown media type %q of a layer", short(mediaType))
}

// isTar tells a tar stream by its first block: a magic, the block of zeros of an empty archive, or nothing at all.
func isTar(head []byte) bool {
	return len(head) >= 262 && string(head[257:262]) == "ustar" || len(head) == 512 && !bytes.ContainsFunc(head, func(r rune) bool { return r != 0 })
}

// gzipReader reads gzip data, which may be of several parts and may end with padding of zeros that some tools add.
type gzipReader struct {
	zr *gzip.Reader
	br *bufio.Reader
}

func (g *gzipReader) Read(p []byte) (int, error) {
	n, err := g.zr.Read(p)
	if err == nil || !errors.Is(err, io.EOF) {
		return n, err
	}
	head, err := g.br.Peek(1)
	if err != nil {
		return n, err // there is no more
	}
	if head[0] == 0 {
		return n, g.padding()
	}
	if err := g.zr.Reset(g.br); err != nil {
		return n, cutOff(err)
	}
	g.zr.Multistream(false)
	return n, nil
}

// padding reads zeros to their end.
func (g *gzipReader) padding() error {
	for {
		c, err := g.br.ReadByte()
		switch {
		case err != nil:
			return err
		case c != 0:
			return gzip.ErrHeader
		}
	}
}

// source remembers the failure of whoever supplies the blob, which decoders would wrap or replace.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// decoder gives the failures of decompression a class.
type decoder struct {
	source *source
	name   string
	r      io.Reader
	close  func() // may be nil
}

// Read implements io.Reader.
func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.EOF) && d.source.err != nil {
		err = d.explain(err)
	}
	return n, err
}

func (d *decoder) explain(err error) error {
	switch {
	case d.source.err != nil:
		return d.source.err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fault.New(fault.Invalid, "its %s data is cut off", d.name)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fault.New(fault.Exhausted, "its %s data needs more than %d MiB to decompress", d.name, maxWindow>>20)
	}
	return fault.Wrap(fault.Invalid, err, "its %s data is damaged", d.name)
}

// Close releases the decoder.
func (d *decoder) Close() error {
	if d.close != nil {
		d.close()
		d.close = nil
	}
	return nil
}
