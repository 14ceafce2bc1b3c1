package kernel

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"banger/internal/fault"
)

// fakeKernel is the smallest ELF file that counts as a kernel: a header, one segment of notes, and filling.
func fakeKernel(noteType uint32, filling int) []byte {
	const headerSize, segmentSize = 64, 56
	note := binary.LittleEndian.AppendUint32(nil, 4)
	note = binary.LittleEndian.AppendUint32(note, 8)
	note = binary.LittleEndian.AppendUint32(note, noteType)
	note = append(note, "Xen\x00entrypnt"...)
	out := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, headerSize-7)...)
	le := binary.LittleEndian
	le.PutUint16(out[16:], 2)  // an executable
	le.PutUint16(out[18:], 62) // for x86-64
	le.PutUint32(out[20:], 1)
	le.PutUint64(out[32:], headerSize) // where the segments are
	le.PutUint16(out[52:], headerSize)
	le.PutUint16(out[54:], segmentSize)
	le.PutUint16(out[56:], 1)
	le.PutUint16(out[58:], 64)
	segment := make([]byte, segmentSize)
	le.PutUint32(segment, 4) // notes
	le.PutUint64(segment[8:], headerSize+segmentSize)
	le.PutUint64(segment[32:], uint64(len(note)))
	le.PutUint64(segment[40:], uint64(len(note)))
	out = append(append(append(out, segment...), note...), bytes.Repeat([]byte("kernel code "), filling)...)
	return append(out, "Linux version "+fakeRelease+" (debian-kernel@test.invalid) #1 SMP\n\x00"...)
}

// fakeRelease is what such a kernel says that it is.
const fakeRelease = "6.1.0-9-cloud-amd64"

const pvhNote = 18

// bzImage wraps a payload as the kernel's build does.
func bzImage(payload []byte) []byte {
	const setup, offset = 3, 100
	out := make([]byte, (setup+1)*512+offset)
	out[0x1f1] = setup
	copy(out[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(out[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(out[0x248:], offset)
	binary.LittleEndian.PutUint32(out[0x24c:], uint32(len(payload)))
	return append(append(out, payload...), "what follows the payload"...)
}

// withSize appends the size of the plain kernel, as the build does for all forms but gzip.
func withSize(compressed, plain []byte) []byte {
	return binary.LittleEndian.AppendUint32(compressed, uint32(len(plain)))
}

func gzipped(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func xzipped(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w, err := xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

func lzmaed(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w, err := lzma.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// wideZstandard is the begin of a frame with a window of 1 GiB.
func wideZstandard(testing.TB) []byte {
	const noSingleSegment, window = 0, (30 - 10) << 3
	return append([]byte(zstdMagic), noSingleSegment, window, 1, 0, 0, 0, 0, 0, 0, 0)
}

// zboot wraps a payload as the kernel's build does for EFI.
func zboot(kind string, payload []byte) []byte {
	const offset = 0x100
	out := make([]byte, offset)
	copy(out, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(out[8:], offset)
	binary.LittleEndian.PutUint32(out[12:], uint32(len(payload)))
	copy(out[24:], kind)
	return append(append(out, payload...), "\x01\x02\x03\x04 what follows"...)
}

func fromTestdata(t testing.TB, name string) []byte {
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func lz4Blocks(t testing.TB, data []byte) []byte {
	out := []byte("\x02\x21\x4c\x18")
	for len(data) > 0 {
		chunk := data[:min(len(data), 8<<20)]
		data = data[len(chunk):]
		block := make([]byte, lz4.CompressBlockBound(len(chunk)))
		n, err := lz4.CompressBlock(chunk, block, nil)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		out = append(binary.LittleEndian.AppendUint32(out, uint32(n)), block[:n]...)
	}
	return out
}

func TestExtractEveryForm(t *testing.T) {
	plain, large := fakeKernel(pvhNote, 10_000), fakeKernel(pvhNote, 800_000)
	arm := append(make([]byte, 0x38), "ARM\x64 and the rest of it"...)
	for _, tc := range []struct {
		name  string
		image []byte
		want  []byte
	}{
		{"lz4", bzImage(withSize(lz4Blocks(t, plain), plain)), plain},
		{"lz4 of several blocks", bzImage(withSize(lz4Blocks(t, large), large)), large},
		{"lzma", bzImage(withSize(lzmaed(t, plain), plain)), plain},
		{"bzip2", bzImage(withSize(fromTestdata(t, "hello.bz2"), []byte("hello kernel\n"))), []byte("hello kernel\n")},
		{"gzip", bzImage(gzipped(t, plain)), plain},
		{"xz", bzImage(withSize(xzipped(t, plain), plain)), plain},
		{"zstd", bzImage(withSize(zstandard(t, plain), plain)), plain},
		{"not compressed", bzImage(plain), plain},
		{"plain file", plain, plain},
		{"arm64", arm, arm},
		{"arm64, gzip", gzipped(t, arm), arm},
		{"arm64, EFI program with gzip", zboot("gzip", gzipped(t, arm)), arm},
		{"arm64, EFI program with zstd", zboot("zstd22", zstandard(t, arm)), arm},
		{"arm64, EFI program with xz", zboot("xz", xzipped(t, arm)), arm},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got bytes.Buffer
			if err := extract(tc.image, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), tc.want) {
				t.Errorf("%d bytes that differ from the %d wanted", got.Len(), len(tc.want))
			}
		})
	}
}

// The kernel's build passes x86 code through a filter of xz; testdata/x86-filter.xz was made by xz --x86.
func TestExtractUndoesTheFilterOfXZ(t *testing.T) {
	data := fromTestdata(t, "x86-filter.xz")
	var got bytes.Buffer
	if err := extract(bzImage(withSize(data, make([]byte, 40_000))), &got); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(got.Bytes())
	if hex.EncodeToString(sum[:]) != "c96652c89c7c489ae432965b97aef63f5211a4de12c13ad254a551c8a8d1dcd7" {
		t.Errorf("got sha256 %x", sum)
	}
}

func TestExtractRefuses(t *testing.T) {
	plain := fakeKernel(pvhNote, 1000)
	good := bzImage(withSize(lz4Blocks(t, plain), plain))
	old := bytes.Clone(good)
	old[0x206], old[0x207] = 0x05, 0x02
	for _, tc := range []struct {
		name  string
		image []byte
		text  string
	}{
		{"empty", nil, "unknown way"},
		{"garbage", []byte("hello, world"), "unknown way"},
		{"old protocol", old, "boot protocol 0x205"},
		{"cut", good[:len(good)-100], "truncated"},
		{"EFI program cut", zboot("gzip", gzipped(t, plain))[:100], "truncated"},
		{"EFI program with LZO", zboot("lzo", []byte("x")), "LZO"},
		{"LZO", bzImage(append([]byte(lzoMagic), make([]byte, 100)...)), "LZO"},
		{"lzma cut", bzImage(withSize(lzmaed(t, plain)[:60], plain)), "compressed kernel"},
		{"lzma that wants too much memory", bzImage(withSize(append([]byte("\x5d\x00\x00\x00\x40"), lzmaed(t, plain)[5:]...), plain)), "dictionary"},
		{"zstd that wants too much memory", bzImage(withSize(wideZstandard(t), plain)), "compressed kernel"},
		{"wrong size", bzImage(withSize(lz4Blocks(t, plain), plain[1:])), "its header says"},
		{"gzip of another kernel", bzImage(append(gzipped(t, plain)[:50], 0, 0, 0, 0)), "compressed kernel"},
		{"lz4 cut", bzImage(withSize(lz4Blocks(t, plain)[:60], plain)), "EOF"},
		{"lz4 of nothing", bzImage(append([]byte("\x02\x21\x4c\x18\x00\x00\x00\x00"), 0, 0, 0, 0)), "EOF"},
		{"xz cut", bzImage(withSize(xzipped(t, plain)[:60], plain)), "compressed kernel"},
		{"zstd cut", bzImage(withSize(zstandard(t, plain)[:60], plain)), "compressed kernel"},
	} {
		err := extract(tc.image, &bytes.Buffer{})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: error %v, want one with %q", tc.name, err, tc.text)
		}
	}
}

func TestInspect(t *testing.T) {
	library := fakeKernel(pvhNote, 1)
	library[16] = 3
	banner := []byte("Linux version %s (%s)\x00Linux version 6.12.1+deb13-amd64 (x@y) #1 SMP\x00")
	config := append([]byte("IKCFG_ST no, only its name\x00IKCFG_ST"), gzipped(t, []byte("CONFIG_ACPI=y\n"))...)
	arm := append(make([]byte, 0x38), "ARM\x64 and the rest of it, which is quite long"...)
	for name, tc := range map[string]struct {
		data []byte
		want imageFacts
		text string
	}{
		"kernel":            {data: fakeKernel(pvhNote, 1), want: imageFacts{arch: "amd64", pvh: true, release: fakeRelease}},
		"no PVH":            {data: fakeKernel(pvhNote+1, 1), want: imageFacts{arch: "amd64", release: fakeRelease}},
		"arm64":             {data: append(arm, banner...), want: imageFacts{arch: "arm64", release: "6.12.1+deb13-amd64"}},
		"arm64, no release": {data: append(arm, "Linux version unknown (x)"...), want: imageFacts{arch: "arm64"}},
		"configuration": {
			data: append(fakeKernel(pvhNote, 1), append(config, "IKCFG_ED"...)...),
			want: imageFacts{arch: "amd64", pvh: true, release: fakeRelease, config: []byte("CONFIG_ACPI=y\n")},
		},
		"configuration cut": {data: append(arm, config[:len(config)-9]...), want: imageFacts{arch: "arm64"}},
		"not a file":        {data: []byte("hello"), text: "kernel"},
		"empty":             {text: "kernel"},
		"library":           {data: library, text: "type ET_DYN"},
	} {
		got, err := inspect(tc.data)
		if tc.text != "" {
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: error %v, want %q", name, err, tc.text)
			}
			continue
		}
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(imageFacts{})); err != nil || diff != "" {
			t.Errorf("%s: error %v (-want +got)\n%s", name, err, diff)
		}
	}
}
