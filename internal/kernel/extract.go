package kernel

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"

	"banger/internal/fault"
)

// maxKernel is the most bytes of an uncompressed kernel.
const maxKernel = 1 << 30

// extract writes the kernel that is inside image, which is what a distribution installs as /boot/vmlinuz-*: an x86
// bzImage with a compressed ELF file in it, an arm64 Image, plain or compressed or inside an EFI program that unpacks it
// (zboot), or a plain ELF file.
func extract(image []byte, w io.Writer) error {
	p, err := findPayload(image)
	if err != nil {
		return err
	}
	r, plain, err := open(p.data)
	if err != nil {
		return fault.Context(err, "kernel")
	}
	if plain {
		_, err := w.Write(p.data)
		return err
	}
	n, err := io.Copy(w, io.LimitReader(r, maxKernel))
	switch {
	case err != nil:
		return fault.Wrap(fault.Invalid, err, "compressed kernel")
	case n == maxKernel:
		return fault.New(fault.Invalid, "compressed kernel is too large")
	case p.sized && n != int64(p.size):
		return fault.New(fault.Invalid, "compressed kernel has %d bytes, its header says %d", n, p.size)
	}
	return nil
}

// payload is a kernel as it is inside a boot file, compressed in most cases.
type payload struct {
	data  []byte
	sized bool   // size is known
	size  uint32 // of the kernel when it is decompressed
}

// findPayload finds the kernel in a boot file, which may be nothing else.
func findPayload(image []byte) (payload, error) {
	data, ok, err := zbootPayload(image)
	if ok || err != nil {
		return payload{data: data}, err
	}
	data, ok, err = bzImagePayload(image)
	if !ok || err != nil {
		return payload{data: image}, err
	}
	p := payload{data: data}
	if _, plain, _ := open(data); len(data) > 4 && !plain {
		// The kernel's build appends the size of the plain kernel to each form that does not end with it anyway.
		p.sized, p.size = true, binary.LittleEndian.Uint32(data[len(data)-4:])
		if !bytes.HasPrefix(data, []byte(gzipMagic)) {
			p.data = data[:len(data)-4]
		}
	}
	return p, nil
}

// bzImagePayload finds the compressed kernel in an x86 boot file (Documentation/arch/x86/boot.rst of the kernel).
func bzImagePayload(image []byte) (data []byte, ok bool, err error) {
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
	data, err = slice(image, start, int64(binary.LittleEndian.Uint32(image[payloadLength:])))
	return data, err == nil, err
}

// zbootPayload finds the compressed kernel in an EFI program that unpacks it (the kernel's
// drivers/firmware/efi/libstub/zboot-header.S).
func zbootPayload(image []byte) (data []byte, ok bool, err error) {
	const magic, payloadOffset, payloadLength, compression, headerEnd = 4, 8, 12, 24, 56
	if len(image) < headerEnd || string(image[:2]) != "MZ" || string(image[magic:magic+4]) != "zimg" {
		return nil, false, nil
	}
	data, err = slice(image, int64(binary.LittleEndian.Uint32(image[payloadOffset:])),
		int64(binary.LittleEndian.Uint32(image[payloadLength:])))
	if err != nil {
		return nil, false, err
	}
	if kind, _, _ := strings.Cut(string(image[compression:headerEnd]), "\x00"); kind == "lzo" {
		return nil, false, fault.New(fault.Invalid, "kernel: compressed with LZO, which banger does not read")
	}
	return data, true, nil
}

// slice returns length bytes of image, which must be there.
func slice(image []byte, start, length int64) ([]byte, error) {
	if length <= 0 || start+length > int64(len(image)) {
		return nil, fault.New(fault.Invalid, "kernel is truncated")
	}
	return image[start : start+length], nil
}
