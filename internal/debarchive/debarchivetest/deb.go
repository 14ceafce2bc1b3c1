package debarchivetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Deb is a binary package.
type Deb struct {
	Compression string // of its data: "", ".gz", ".xz" or ".zst"
	Files       []File
}

// File is something in a package. One without a Type is a directory if its name ends in a slash, else a regular file.
type File struct {
	Name string
	Type byte // of package archive/tar
	Link string
	Data []byte
}

// Bytes returns the package as it would be downloaded.
func (d Deb) Bytes(t testing.TB) []byte {
	t.Helper()
	var data bytes.Buffer
	tw := tar.NewWriter(&data)
	for _, f := range d.Files {
		h := &tar.Header{
			Name: f.Name, Typeflag: f.Type, Linkname: f.Link, Mode: 0o644, Size: int64(len(f.Data)),
			ModTime: time.Unix(1_700_000_000, 0), Format: tar.FormatGNU,
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	out := []byte("!<arch>\n")
	out = appendMember(out, "debian-binary", []byte("2.0\n"))
	out = appendMember(out, "control.tar", []byte("odd"))
	return appendMember(out, "data.tar"+d.Compression, compress(t, d.Compression, data.Bytes()))
}

func appendMember(out []byte, name string, data []byte) []byte {
	out = fmt.Appendf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 1_700_000_000, 0, 0, "100644", len(data))
	out = append(out, data...)
	if len(data)%2 != 0 {
		out = append(out, '\n')
	}
	return out
}

func zstandard(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}
