package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"regexp"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// imageFacts is what an extracted kernel says of itself.
type imageFacts struct {
	arch    string // Debian's name
	pvh     bool   // it has the entry point for virtual machines, which x86 kernels need
	release string // as uname -r prints it; empty: not found
	config  []byte // what it was built with; nil: it does not carry that
}

// inspect looks at an extracted kernel. A file that is none is refused.
func inspect(data []byte) (imageFacts, error) {
	facts := imageFacts{arch: "arm64", release: findRelease(data), config: findConfig(data)}
	if isARM64Image(data) {
		return facts, nil
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return imageFacts{}, fault.Wrap(fault.Invalid, err, "kernel")
	}
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 {
		return imageFacts{}, fault.New(fault.Invalid, "kernel is an ELF file of type %v for %v", f.Type, f.Machine)
	}
	facts.arch = "amd64"
	facts.pvh, err = hasPVH(f)
	return facts, err
}

// hasPVH looks for the entry point for virtual machines in the notes of an ELF file.
func hasPVH(f *elf.File) (bool, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			return false, fault.Wrap(fault.Invalid, err, "kernel")
		}
		if hasPVHNote(notes) {
			return true, nil
		}
	}
	return false, nil
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

// releaseText is a release as the kernel's build makes it, after the words that begin its banner.
var releaseText = regexp.MustCompile(`^[0-9]+\.[0-9]+[0-9A-Za-z.+~_-]{0,120}$`)

// findRelease finds the banner "Linux version 6.1.0-9-cloud-amd64 (builder@host) ..." in a kernel.
func findRelease(data []byte) string {
	const begin, longest = "Linux version ", 128
	for {
		i := bytes.Index(data, []byte(begin))
		if i < 0 {
			return ""
		}
		data = data[i+len(begin):]
		word, _, ok := bytes.Cut(data[:min(len(data), longest)], []byte(" "))
		if ok && releaseText.Match(word) {
			return string(word)
		}
	}
}

// maxConfig is far above the 300 KiB that the configuration of a distribution's kernel has.
const maxConfig = 16 << 20

// findConfig finds the configuration that a kernel carries if it was built with CONFIG_IKCONFIG.
func findConfig(data []byte) []byte {
	const begin = "IKCFG_ST" + gzipMagic
	for {
		i := bytes.Index(data, []byte(begin))
		if i < 0 {
			return nil
		}
		data = data[i+len("IKCFG_ST"):]
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			continue
		}
		z.Multistream(false)
		if text, err := readLimited(z, maxConfig); err == nil && bytes.Contains(text, []byte("CONFIG_")) {
			return text
		}
	}
}

// inspectFile is inspect for a file of ours, which nobody shortens meanwhile.
func inspectFile(f *os.File) (imageFacts, error) {
	var facts imageFacts
	err := withMapped(f, func(data []byte) (err error) {
		facts, err = inspect(data)
		return err
	})
	return facts, err
}

// withMapped calls use with the content of f, which is valid until use returns.
func withMapped(f *os.File, use func(data []byte) error) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return use(nil)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer func() { _ = unix.Munmap(data) }()
	return use(data)
}
