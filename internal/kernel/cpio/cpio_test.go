package cpio

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// header is one with the given sizes; the rest is zero.
func header(size, nameSize int) string {
	return "070701" + strings.Repeat("0", 48) + fmt.Sprintf("%08x", size) + strings.Repeat("0", 32) + fmt.Sprintf("%08X", nameSize) + "00000000"
}

// entry is a header, a name and a content, each filled up.
func entry(name, content string) string {
	fill := func(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }
	return fill(header(len(content), len(name)+1)+name+"\x00") + fill(content)
}

func end() string { return entry(trailer, "") }

func TestArchive(t *testing.T) {
	const more = "what follows"
	for _, tc := range []struct {
		name string
		data string
		want string // names and sizes
		text string // of the error
	}{
		{name: "files", data: entry("a", "12345") + entry("dir/b", "") + entry("ccc", "1234") + end() + more, want: "a:5 dir/b:0 ccc:4"},
		{name: "nothing", data: end() + more},
		{name: "an end with a content, which Linux passes over", data: entry(trailer, "x") + more},
		{name: "empty", text: "at byte 0: unexpected EOF"},
		{name: "no end", data: entry("a", "12345"), want: "a:5", text: "at byte 120: unexpected EOF"},
		{name: "cut in a content", data: entry("a", "12345")[:115], text: "unexpected EOF"},
		{name: "cut in a name", data: header(0, 50) + "abc", text: "unexpected EOF"},
		{name: "content too short", data: header(0xffffffff, 2) + "a\x00", text: "unexpected EOF"},
		{name: "old format", data: strings.Replace(end(), "070701", "070707", 1), text: "no header"},
		{name: "bad number", data: strings.Replace(entry("a", ""), "00000002", "0000000x", 1), text: "bad number"},
		{name: "sign in a number", data: strings.Replace(entry("a", ""), "00000002", "+0000002", 1), text: "bad number"},
		{name: "no name", data: header(0, 0), text: "a name of 0 bytes"},
		{name: "long name", data: header(0, 5000), text: "a name of 5000 bytes"},
		{name: "name without an end", data: header(0, 4) + "abcd", text: "a name without an end"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			r := bufio.NewReader(strings.NewReader(tc.data))
			n, err := Archive(r, func(name string, size int64) error {
				got = append(got, fmt.Sprintf("%s:%d", name, size))
				return nil
			})
			if (err == nil) != (tc.text == "") || err != nil && !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v, want %q", err, tc.text)
			}
			if diff := cmp.Diff(tc.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if rest, _ := io.ReadAll(r); err == nil && (string(rest) != more || n != int64(len(tc.data)-len(more))) {
				t.Errorf("%d bytes read, left %q", n, rest)
			}
		})
	}
}

// The last archive of a file may end without what fills it up.
func TestArchiveEndsWithTheFile(t *testing.T) {
	data := strings.TrimRight(end(), "\x00") + "\x00"
	if n, err := Archive(bufio.NewReader(strings.NewReader(data)), nil); err != nil || n != int64(len(data)) {
		t.Errorf("%d of %d bytes, %v", n, len(data), err)
	}
}

func TestVisitEndsIt(t *testing.T) {
	_, err := Archive(bufio.NewReader(strings.NewReader(entry("a", "")+end())), func(string, int64) error { return io.ErrShortWrite })
	if err != io.ErrShortWrite {
		t.Errorf("error %v", err)
	}
}

func FuzzArchive(f *testing.F) {
	f.Add([]byte(entry("a", "12345") + entry("b", "") + end()))
	f.Add([]byte(header(0xffffffff, 2) + "a\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var total int64
		n, err := Archive(bufio.NewReader(bytes.NewReader(data)), func(name string, size int64) error {
			if total += size; len(name) >= maxName {
				t.Errorf("a name of %d bytes", len(name))
			}
			return nil
		})
		if n > int64(len(data)) || err == nil && total > n {
			t.Errorf("%d bytes read of %d, %d of contents: %v", n, len(data), total, err)
		}
	})
}
