package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"

	"banger/internal/fault"
)

const (
	maxKernel = 1 << 30   // bytes of an uncompressed kernel
	maxWindow = 128 << 20 // bytes of memory that a compressed stream may ask for
)

// extract writes the kernel that is inside image, which is what a distribution installs as /boot/vmlinuz-*: an x86
// bzImage with a compressed ELF file in it, an arm64 Image, plain or compressed, or a plain ELF file.
func extract(image []byte, w io.Writer) error {
	payload, sized := image, false
	if p, ok, err := bzImagePayload(image); err != nil {
		return err
	} else if ok {
		payload, sized = p, true
	}
	// The kernel's build appends the size of the plain kernel to each form that does not end with it anyway.
	var size uint32
	compressed := payload
	if sized && len(payload) > 4 {
		size = binary.LittleEndian.Uint32(payload[len(payload)-4:])
		if !bytes.HasPrefix(payload, gzipMagic) {
			compressed = payload[:len(payload)-4]
		}
	}
	r, plain, err := open(compressed)
	if err != nil {
		return err
	}
	if plain {
		_, err := w.Write(payload)
		return err
	}
	n, err := io.Copy(w, io.LimitReader(r, maxKernel))
	switch {
	case err != nil:
		return fault.Wrap(fault.Invalid, err, "compressed kernel")
	case n == maxKernel:
		return fault.New(fault.Invalid, "compressed kernel is too large")
	case sized && n != int64(size):
		return fault.New(fault.Invalid, "compressed kernel has %d bytes, its header says %d", n, size)
	}
	return nil
}

// bzImagePayload finds the compressed kernel in an x86 boot file (Documentation/arch/x86/boot.rst of the kernel).
func bzImagePayload(image []byte) (payload []byte, ok bool, err error) {
	const setupSects, magic, version, payloadOffset, payloadLength, headerEnd = 0x1f1, 0x202, 0x206, 0x248, 0x24c, 0x250
	if len(image) < headerEnd || string(image[magic:magic+4]) != "HdrS" {
		return nil, false, nil
	}
	if v := binary.LittleEndian.Uint16(image[version:]); v < 0x208 {
		return nil, false, fault.New(fault.Invalid, "kernel has boot protocol %#x, too old", v)
	}
	sectors := int64(image[setupSects])
	if sectors == 0 {
		sectors = 4 // as the boot protocol defines it
	}
	start := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if start >= end || end > int64(len(image)) {
		return nil, false, fault.New(fault.Invalid, "kernel is truncated")
	}
	return image[start:end], true, nil
}

// gzipMagic begins a gzip stream, which ends with the size of its content, unlike the others.
var gzipMagic = []byte{0x1f, 0x8b, 8}

// open returns a reader of what data holds, told by its first bytes; plain says that it is not compressed.
func open(data []byte) (r io.Reader, plain bool, err error) {
	in := bytes.NewReader(data)
	has := func(magic string) bool { return bytes.HasPrefix(data, []byte(magic)) }
	switch {
	case bytes.HasPrefix(data, gzipMagic):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, false, fault.Wrap(fault.Invalid, err, "compressed kernel")
		}
		z.Multistream(false)
		return z, false, nil
	case has("\xfd7zXZ\x00"):
		r, err = xz.NewReader(in, maxWindow)
	case has("\x28\xb5\x2f\xfd"):
		r, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow))
	case has("\x02\x21\x4c\x18"):
		return &lz4Legacy{data: data[4:]}, false, nil
	case has(elf.ELFMAG), isARM64Image(data):
		return in, true, nil
	default:
		return nil, false, fault.New(fault.Invalid, "kernel is compressed in an unknown way (% x)", data[:min(4, len(data))])
	}
	if err != nil {
		err = fault.Wrap(fault.Invalid, err, "compressed kernel")
	}
	return r, false, err
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

// checkBootable refuses what no VMM could start: an x86 kernel needs the entry point for virtual machines (PVH).
func checkBootable(r io.ReaderAt) error {
	head := make([]byte, 64)
	if _, err := r.ReadAt(head, 0); err == nil && isARM64Image(head) {
		return nil
	}
	f, err := elf.NewFile(r)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "kernel")
	}
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 {
		return fault.New(fault.Invalid, "kernel is an ELF file of type %v for %v", f.Type, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "kernel")
		}
		if hasPVHNote(notes) {
			return nil
		}
	}
	return fault.New(fault.Invalid, "kernel has no PVH entry point")
}

// hasPVHNote looks for the Xen note PHYS32_ENTRY.
func hasPVHNote(notes []byte) bool {
	const phys32Entry = 18
	for len(notes) >= 12 {
		nameSize, descSize := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:])
		kind := binary.LittleEndian.Uint32(notes[8:])
		desc := 12 + (uint64(nameSize)+3)&^3
		end := desc + (uint64(descSize)+3)&^3
		if end > uint64(len(notes)) {
			return false
		}
		if kind == phys32Entry && string(notes[12:12+nameSize]) == "Xen\x00" {
			return true
		}
		notes = notes[end:]
	}
	return false
}

// readModule returns a kernel module's bytes from a file that may be compressed.
func readModule(data []byte) ([]byte, error) {
	r, plain, err := open(data)
	if err != nil || plain {
		return data, err
	}
	out, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(out) > maxModule {
		err = errors.New("too large")
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return out, nil
}
