package kernel

import (
	"context"
	"errors"
	"strings"
	"testing"

	"banger/internal/fault"
)

// small is an archive with one empty file.
func small() string {
	file := "070701" + strings.Repeat("0", 88) + "00000002" + "00000000" + "a\x00"
	return file + emptyArchive()
}

func emptyArchive() string { return "070701" + trailerRest + "\x00\x00\x00" }

func TestCheckInitrd(t *testing.T) {
	zeroes := func(n int) string { return strings.Repeat("\x00", n) }
	for _, tc := range []struct {
		name string
		data string
		text string // of the error
	}{
		{name: "plain", data: small()},
		{name: "several, filled up", data: small() + zeroes(512) + small() + zeroes(8)},
		{name: "gzip", data: string(gzipped(t, []byte(small()+zeroes(100))))},
		{name: "xz", data: string(xzipped(t, []byte(small())))},
		{name: "zstd", data: string(zstandard(t, []byte(small()+zeroes(4)+small())))},
		{name: "lz4", data: string(lz4Blocks(t, []byte(small()+strings.Repeat("\x00", 4000))))},
		{name: "lzma", data: string(lzmaed(t, []byte(small())))},
		{name: "processor updates before the compressed rest", data: small() + zeroes(3) + string(zstandard(t, []byte(small())))},

		{name: "empty", text: "it holds nothing"},
		{name: "zeroes", data: zeroes(100), text: "it holds nothing"},
		{name: "text", data: "hello", text: "no cpio archive at byte 0: compressed in an unknown way (68 65 6c 6c)"},
		{name: "text after an archive", data: small() + "hello", text: "at byte 236"},
		{name: "cut", data: small()[:150], text: "it is damaged: cpio archive at byte 150"},
		{name: "not where archives may begin", data: small() + zeroes(1) + small(), text: "which is no multiple of 4"},
		{name: "compressed nothing", data: string(gzipped(t, nil)), text: "no cpio archive in its compressed part"},
		{name: "compressed text", data: string(zstandard(t, []byte("hello"))), text: "no cpio archive in its compressed part"},
		{name: "compressed and cut", data: string(gzipped(t, []byte(small())))[:40], text: "it is damaged"},
		{name: "compressed archive that is cut", data: string(gzipped(t, []byte(small()[:150]))), text: "it is damaged"},
		{name: "a program", data: string(fakeKernel(pvhNote, 1)), text: "a program or a kernel"},
		{name: "LZO", data: lzoMagic + "x", text: "LZO"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := checkInitrd(t.Context(), []byte(tc.data))
			if (err == nil) != (tc.text == "") || err != nil && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.text)) {
				t.Errorf("error %v, want %q", err, tc.text)
			}
		})
	}
}

func TestCheckInitrdEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := checkInitrd(ctx, []byte(small())); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
