package kernel

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

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
	return append(append(append(out, segment...), note...), bytes.Repeat([]byte("kernel code "), filling)...)
}

const pvh = 18

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
	plain, large := fakeKernel(pvh, 10_000), fakeKernel(pvh, 800_000)
	arm := append(make([]byte, 0x38), "ARM\x64 and the rest of it"...)
	for _, tc := range []struct {
		name  string
		image []byte
		want  []byte
	}{
		{"lz4", bzImage(withSize(lz4Blocks(t, plain), plain)), plain},
		{"lz4 of several blocks", bzImage(withSize(lz4Blocks(t, large), large)), large},
		{"gzip", bzImage(gzipped(t, plain)), plain},
		{"xz", bzImage(withSize(xzipped(t, plain), plain)), plain},
		{"zstd", bzImage(withSize(zstandard(t, plain), plain)), plain},
		{"not compressed", bzImage(plain), plain},
		{"plain file", plain, plain},
		{"arm64", arm, arm},
		{"arm64, gzip", gzipped(t, arm), arm},
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
	data, err := os.ReadFile("testdata/x86-filter.xz")
	if err != nil {
		t.Fatal(err)
	}
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
	plain := fakeKernel(pvh, 1000)
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

func TestCheckBootable(t *testing.T) {
	library := fakeKernel(pvh, 1)
	library[16] = 3
	for name, tc := range map[string]struct {
		data []byte
		text string
	}{
		"kernel":     {fakeKernel(pvh, 1), ""},
		"no PVH":     {fakeKernel(pvh+1, 1), "no PVH entry point"},
		"not a file": {[]byte("hello"), "kernel"},
		"library":    {library, "type ET_DYN"},
	} {
		err := checkBootable(bytes.NewReader(tc.data))
		if (err == nil) != (tc.text == "") || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: error %v, want %q", name, err, tc.text)
		}
	}
}

func FuzzExtract(f *testing.F) {
	plain := fakeKernel(pvh, 10)
	f.Add(bzImage(withSize(lz4Blocks(f, plain), plain)))
	f.Add(bzImage(gzipped(f, plain)))
	f.Add(bzImage(withSize(xzipped(f, plain), plain)))
	f.Add(bzImage(withSize(zstandard(f, plain), plain)))
	f.Add(plain)
	f.Fuzz(func(_ *testing.T, image []byte) {
		var out limited
		_ = extract(image, &out)
		_ = checkBootable(bytes.NewReader(image))
	})
}

// limited takes some megabytes and then fails, so that the fuzzer cannot fill the memory.
type limited int

func (l *limited) Write(p []byte) (int, error) {
	if *l += limited(len(p)); *l > 64<<20 {
		return 0, os.ErrInvalid
	}
	return len(p), nil
}
