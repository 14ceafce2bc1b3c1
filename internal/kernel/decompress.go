package kernel

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"

	"banger/internal/fault"
)

// maxWindow is how much memory a compressed stream may ask for. The kernel's build uses up to 128 MiB (zstd).
const maxWindow = 128 << 20

// First bytes of the forms that a kernel, a module or a RAM disk may have.
const (
	gzipMagic  = "\x1f\x8b\x08"
	xzMagic    = "\xfd7zXZ\x00"
	zstdMagic  = "\x28\xb5\x2f\xfd"
	lz4Magic   = "\x02\x21\x4c\x18" // of the legacy format
	bzip2Magic = "BZh"
	lzmaMagic  = "\x5d\x00\x00" // usual properties and a dictionary of whole 64 KiB: there is no real one
	lzoMagic   = "\x89LZO\x00\r\n"
)

// open returns a reader of what data holds, told by its first bytes; plain says that it is not compressed. Nothing has
// to be closed.
func open(data []byte) (r io.Reader, plain bool, err error) {
	in := bytes.NewReader(data)
	has := func(magic string) bool { return bytes.HasPrefix(data, []byte(magic)) }
	switch {
	case has(gzipMagic):
		var z *gzip.Reader
		if z, err = gzip.NewReader(in); err == nil {
			z.Multistream(false)
			r = z
		}
	case has(xzMagic):
		r, err = xz.NewReader(in, maxWindow)
	case has(zstdMagic):
		// One goroutine less to wait for: a decoder without concurrency needs no Close.
		r, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow))
	case has(lz4Magic):
		r = &lz4Legacy{data: data[len(lz4Magic):]}
	case has(bzip2Magic):
		r = bzip2.NewReader(in)
	case has(lzmaMagic):
		r, err = lzma.ReaderConfig{DictCap: maxWindow}.NewReader(in)
	case has(lzoMagic):
		return nil, false, fault.New(fault.Invalid,
			"compressed with LZO, which banger does not read (the kernel's scripts/extract-vmlinux does)")
	case has(elf.ELFMAG), isARM64Image(data):
		return in, true, nil
	default:
		return nil, false, fault.New(fault.Invalid, "compressed in an unknown way (% x)", data[:min(4, len(data))])
	}
	if err != nil {
		return nil, false, fault.Wrap(fault.Invalid, err, "compressed data")
	}
	return r, false, nil
}

// isARM64Image reports whether data is an uncompressed arm64 kernel (Documentation/arch/arm64/booting.rst).
func isARM64Image(data []byte) bool {
	return len(data) >= 64 && string(data[0x38:0x3c]) == "ARM\x64"
}

// lz4Legacy reads the LZ4 form that the kernel's build makes: blocks of up to 8 MiB, each after its compressed size.
type lz4Legacy struct {
	data  []byte
	block []byte // the buffer of one block
	rest  []byte // of block, not read yet
}

func (l *lz4Legacy) Read(p []byte) (int, error) {
	for len(l.rest) == 0 {
		if len(l.data) == 0 {
			return 0, io.EOF
		}
		if err := l.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

func (l *lz4Legacy) next() error {
	const blockSize = 8 << 20
	if len(l.data) < 4 {
		return io.ErrUnexpectedEOF
	}
	size := binary.LittleEndian.Uint32(l.data)
	if int64(size) > int64(len(l.data)-4) || size == 0 {
		return io.ErrUnexpectedEOF
	}
	if l.block == nil {
		l.block = make([]byte, blockSize)
	}
	n, err := lz4.UncompressBlock(l.data[4:4+size], l.block)
	if err != nil {
		return err
	}
	l.rest, l.data = l.block[:n], l.data[4+size:]
	return nil
}

// readModule returns a kernel module's bytes from a file that may be compressed.
func readModule(data []byte) ([]byte, error) {
	r, plain, err := open(data)
	if err != nil || plain {
		return data, err
	}
	return readLimited(r, maxModule)
}

// readLimited reads all of r, which may have up to limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return nil, fault.Wrap(fault.Invalid, err, "decompress")
	case int64(len(out)) > limit:
		return nil, fault.New(fault.Invalid, "more than %d bytes when it is decompressed", limit)
	}
	return out, nil
}
