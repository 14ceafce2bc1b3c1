package ext4

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestEncoderIsReadAsItIsMeant reads what the encoder writes the way the converter does.
func TestEncoderIsReadAsItIsMeant(t *testing.T) {
	at := time.Unix(1700000000, 0)
	fine := time.Unix(1700000000, 123456789)
	for name, hdr := range map[string]tar.Header{
		"file":        {Typeflag: tar.TypeReg, Name: "./usr/bin/x", Mode: 0o4755, Uid: 1 << 31, Gid: 1<<32 - 2, Size: 5, ModTime: at},
		"no contents": {Typeflag: tar.TypeReg, Name: "./x", ModTime: time.Unix(0, 0)},
		"before 1970": {Typeflag: tar.TypeFifo, Name: "./x", ModTime: time.Unix(-1e9, 0)},
		"far future":  {Typeflag: tar.TypeDir, Name: "./x", ModTime: time.Unix(1<<40, 0)},
		"fine time":   {Typeflag: tar.TypeReg, Name: "./x", Size: 5, ModTime: fine},
		"odd name":    {Typeflag: tar.TypeDir, Name: "./\xff\n\x01 ", ModTime: at},
		"name of 100": {Typeflag: tar.TypeReg, Name: strings.Repeat("n", 100), Size: 5, ModTime: at},
		"name of 101": {Typeflag: tar.TypeReg, Name: strings.Repeat("n", 101), Size: 5, ModTime: at},
		"link":        {Typeflag: tar.TypeLink, Name: "./x", Linkname: "./usr/y", ModTime: at},
		"long link":   {Typeflag: tar.TypeSymlink, Name: "./x", Linkname: strings.Repeat("x/", 300), ModTime: at},
		"device":      {Typeflag: tar.TypeBlock, Name: "./x", Devmajor: maxMajor, Devminor: maxMinor, ModTime: at},
		"attributes":  {Typeflag: tar.TypeDir, Name: "./x", ModTime: at, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "\x00v"}},
	} {
		t.Run(name, func(t *testing.T) {
			hdr.AccessTime, hdr.ChangeTime, hdr.Format = hdr.ModTime, hdr.ModTime, tar.FormatPAX
			var b bytes.Buffer
			e := encoder{w: onlyWriter{&b}, buf: make([]byte, 3)}
			if err := e.entry(&hdr, strings.NewReader("hello"[:hdr.Size])); err != nil {
				t.Fatal(err)
			}
			if err := e.end(); err != nil {
				t.Fatal(err)
			}
			tr := tar.NewReader(&b)
			got, err := tr.Next()
			if err != nil {
				t.Fatal(err)
			}
			records := got.PAXRecords
			for key := range records {
				if !strings.HasPrefix(key, xattrPrefix) {
					delete(records, key)
				}
			}
			if diff := cmp.Diff(&hdr, got, cmpopts.IgnoreFields(tar.Header{}, "Format", "Xattrs"), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			if body, err := io.ReadAll(tr); string(body) != "hello"[:hdr.Size] || err != nil {
				t.Errorf("contents %q, err %v", body, err)
			}
			if _, err := tr.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}
