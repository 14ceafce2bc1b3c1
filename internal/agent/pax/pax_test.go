package pax

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// read reads an archive with the standard library.
func read(t *testing.T, archive []byte) (headers []tar.Header, contents []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		headers, contents = append(headers, *h), append(contents, string(content))
	}
}

func TestTheStandardLibraryReadsWhatWasWritten(t *testing.T) {
	deep := strings.Repeat("directory/", 20)
	for _, tc := range []struct {
		name string
		give Header
		want tar.Header
	}{
		{"plain", Header{Name: "etc/file", Type: Regular, Size: 3, Mode: 0o4755, UID: 1000, GID: 100, Sec: 1e9},
			tar.Header{Name: "etc/file", Typeflag: tar.TypeReg, Size: 3, Mode: 0o4755, Uid: 1000, Gid: 100, ModTime: time.Unix(1e9, 0)}},
		{"no content", Header{Name: "empty", Type: Regular}, tar.Header{Name: "empty", Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}},
		{"directory", Header{Name: "./", Type: Directory, Mode: 0o1777},
			tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: time.Unix(0, 0)}},
		{"hundred bytes", Header{Name: strings.Repeat("n", 100), Type: Fifo}, tar.Header{Name: strings.Repeat("n", 100), Typeflag: tar.TypeFifo, ModTime: time.Unix(0, 0)}},
		{"prefix", Header{Name: deep[:150] + "name", Type: Fifo}, tar.Header{Name: deep[:150] + "name", Typeflag: tar.TypeFifo, ModTime: time.Unix(0, 0)}},
		{"directory with prefix", Header{Name: deep[:150], Type: Directory}, tar.Header{Name: deep[:150], Typeflag: tar.TypeDir, ModTime: time.Unix(0, 0)}},
		{"long name", Header{Name: strings.Repeat("n", 101), Type: Fifo},
			tar.Header{Name: strings.Repeat("n", 101), Typeflag: tar.TypeFifo, ModTime: time.Unix(0, 0),
				PAXRecords: map[string]string{"path": strings.Repeat("n", 101)}}},
		{"deep name", Header{Name: deep + deep, Type: Directory},
			tar.Header{Name: deep + deep, Typeflag: tar.TypeDir, ModTime: time.Unix(0, 0), PAXRecords: map[string]string{"path": deep + deep}}},
		{"no ascii", Header{Name: "é\xff", Type: Symlink, Link: "ü"},
			tar.Header{Name: "é\xff", Typeflag: tar.TypeSymlink, Linkname: "ü", ModTime: time.Unix(0, 0),
				PAXRecords: map[string]string{"path": "é\xff", "linkpath": "ü"}}},
		{"long link", Header{Name: "l", Type: HardLink, Link: deep}, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: deep,
			ModTime: time.Unix(0, 0), PAXRecords: map[string]string{"linkpath": deep}}},
		{"device", Header{Name: "d", Type: Block, Major: 259, Minor: 1048575},
			tar.Header{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 1048575, ModTime: time.Unix(0, 0)}},
		{"char device", Header{Name: "d", Type: Char, Major: 1, Minor: 3},
			tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, ModTime: time.Unix(0, 0)}},
		{"large numbers", Header{Name: "n", Type: Fifo, UID: 1<<32 - 2, GID: 1 << 21, Sec: 1 << 40},
			tar.Header{Name: "n", Typeflag: tar.TypeFifo, Uid: 1<<32 - 2, Gid: 1 << 21, ModTime: time.Unix(1<<40, 0),
				PAXRecords: map[string]string{"uid": "4294967294", "gid": "2097152", "mtime": "1099511627776"}}},
		{"nanoseconds", Header{Name: "n", Type: Fifo, Sec: 7, Nsec: 120},
			tar.Header{Name: "n", Typeflag: tar.TypeFifo, ModTime: time.Unix(7, 120), PAXRecords: map[string]string{"mtime": "7.00000012"}}},
		{"before 1970", Header{Name: "n", Type: Fifo, Sec: -2, Nsec: 75e7},
			tar.Header{Name: "n", Typeflag: tar.TypeFifo, ModTime: time.Unix(-2, 75e7), PAXRecords: map[string]string{"mtime": "-1.25"}}},
		{"attributes", Header{Name: "n", Type: Regular, Xattrs: []Xattr{{"security.capability", "\x01\x00\n=\x02"}, {"user.é", ""}}},
			tar.Header{Name: "n", Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), PAXRecords: map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\n=\x02", "SCHILY.xattr.user.é": "",
			}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			w := NewWriter(&out)
			content := strings.Repeat("c", int(tc.give.Size))
			err := w.WriteHeader(&tc.give)
			if err == nil {
				_, err = io.WriteString(w, content)
			}
			if err == nil { // so that padding and records are seen to end where they should
				err = w.WriteHeader(&Header{Name: "last", Type: Directory})
			}
			if err = errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			headers, contents := read(t, out.Bytes())
			if len(headers) != 2 || contents[0] != content || headers[1].Name != "last" {
				t.Fatalf("got %+v, %q", headers, contents)
			}
			got := headers[0]
			got.Format = 0
			if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreFields(tar.Header{}, "Xattrs")); diff != "" {
				t.Error(diff)
			}
			if out.Len()%blockLen != 0 || !bytes.HasSuffix(out.Bytes(), make([]byte, 2*blockLen)) {
				t.Errorf("%d bytes, or no end marker", out.Len())
			}
		})
	}
}

func TestContentComesInPieces(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out)
	const size = 200_000
	err := errors.Join(
		w.WriteHeader(&Header{Name: "f", Type: Regular, Size: size}),
		w.CopyFrom(strings.NewReader(strings.Repeat("a", 70_000)), 65_000),
		w.Hole(100_000),
		w.CopyFrom(strings.NewReader(strings.Repeat("b", 35_000)), 35_000),
		w.Close(),
	)
	if err != nil {
		t.Fatal(err)
	}
	_, contents := read(t, out.Bytes())
	want := strings.Repeat("a", 65_000) + strings.Repeat("\x00", 100_000) + strings.Repeat("b", 35_000)
	if len(contents) != 1 || contents[0] != want {
		t.Errorf("%d contents", len(contents))
	}
}

func TestWriterRefuses(t *testing.T) {
	file := &Header{Name: "f", Type: Regular, Size: 10}
	for _, tc := range []struct {
		name string
		do   func(*Writer) error
	}{
		{"too little", func(w *Writer) error { return errors.Join(w.WriteHeader(file), w.Close()) }},
		{"too little before the next", func(w *Writer) error { return errors.Join(w.WriteHeader(file), w.WriteHeader(file)) }},
		{"too much", func(w *Writer) error {
			_, err := w.Write(make([]byte, 11))
			return errors.Join(w.WriteHeader(file), err)
		}},
		{"too large a hole", func(w *Writer) error { return errors.Join(w.WriteHeader(file), w.Hole(11)) }},
		{"too much to copy", func(w *Writer) error {
			return errors.Join(w.WriteHeader(file), w.CopyFrom(strings.NewReader(strings.Repeat("x", 20)), 11))
		}},
		{"a file that shrank", func(w *Writer) error {
			return errors.Join(w.WriteHeader(file), w.CopyFrom(strings.NewReader("x"), 10))
		}},
		{"NUL in a name", func(w *Writer) error { return w.WriteHeader(&Header{Name: "a\x00b", Type: Fifo}) }},
		{"attribute with an equals sign", func(w *Writer) error {
			return w.WriteHeader(&Header{Name: "a", Type: Fifo, Xattrs: []Xattr{{"user.a=b", "c"}}})
		}},
		{"broken pipe", func(w *Writer) error { return errors.Join(w.WriteHeader(&Header{Name: "a", Type: Fifo}), w.Close()) }},
	} {
		var out io.Writer = io.Discard
		if tc.name == "broken pipe" {
			r, p := io.Pipe()
			_ = r.Close()
			out = p
		}
		if err := tc.do(NewWriter(out)); err == nil {
			t.Errorf("%s: no error", tc.name)
		}
	}
}

func TestRecordCountsItsOwnDigits(t *testing.T) {
	for n := range 1100 {
		var b strings.Builder
		record(&b, "k", strings.Repeat("v", n))
		length, _, _ := strings.Cut(b.String(), " ")
		if want := b.Len(); length != strconv.Itoa(want) {
			t.Fatalf("%d bytes of value: the record says %s and has %d", n, length, want)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add("a/b", "c", int64(5), int64(0))
	f.Add(strings.Repeat("d/", 200), "é", int64(-5), int64(1))
	f.Fuzz(func(t *testing.T, name, link string, sec, nsec int64) {
		nsec = (nsec%1e9 + 1e9) % 1e9
		if name == "" || strings.HasSuffix(name, "/") || strings.ContainsRune(name+link, 0) {
			return // a reader makes a directory of one type and not of another
		}
		sec %= 1 << 50 // beyond it the standard library's time is not exact
		var out bytes.Buffer
		w := NewWriter(&out)
		if err := errors.Join(w.WriteHeader(&Header{Name: name, Type: Symlink, Link: link, Sec: sec, Nsec: nsec}), w.Close()); err != nil {
			t.Fatal(err)
		}
		headers, _ := read(t, out.Bytes())
		if len(headers) != 1 || headers[0].Name != name || headers[0].Linkname != link || !headers[0].ModTime.Equal(time.Unix(sec, nsec)) {
			t.Errorf("%q -> %q %d.%d: got %+v", name, link, sec, nsec, headers)
		}
	})
}
