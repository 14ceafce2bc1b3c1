package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
)

// FuzzFlatten makes layers out of the fuzzer's bytes, or takes the bytes as layers, and compares with the reference.
func FuzzFlatten(f *testing.F) {
	f.Add([]byte("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18"), false)
	f.Add(bytes.Repeat([]byte{0x31, 0x52, 0x07, 0xc4, 0x90, 0x18, 0x63, 0xff}, 12), false)
	f.Add(pack(f, base()...), true)
	f.Add(append(pack(f, reg("d/a", "1"), link("b", "d/a"), symlink("l", "d")), pack(f, reg("l/a", "2"), reg(".wh.b", ""))...), true)
	f.Fuzz(func(t *testing.T, data []byte, raw bool) {
		if len(data) > 64<<10 {
			return
		}
		streams := imagine(t, data)
		if raw {
			streams = cut(data)
		}
		check(t, streams...)
	})
}

// cut takes bytes as tar streams, of which each ends with its end marker.
func cut(data []byte) (streams [][]byte) {
	marker := make([]byte, 1024)
	for len(streams) < 3 && len(data) > 0 {
		end := len(data)
		if i := bytes.Index(data, marker); i >= 0 {
			end = i + len(marker)
			end = min(len(data), (end+511)/512*512)
		}
		streams, data = append(streams, data[:end]), data[end:]
	}
	return streams
}

// imagine makes layers of entries whose names meet often: three bytes make an entry.
func imagine(t testing.TB, data []byte) (streams [][]byte) {
	parts := []string{"a", "b", "c", "..", "d", "a/b", ".wh.a", ".wh.b", ".wh..wh..opq", "l", "m", ".", "", "a/a/a", ".wh.", ".wh.d"}
	targets := []string{"a", "b", "/a", "../b", "/", "..", "a/b", "l", "/l/b", "m", "../../c", "x/../a", "l/../m", "d", "/d/a", "c"}
	var layer []item
	for len(data) >= 3 && len(streams) < 3 {
		kind, where, what := data[0], data[1], data[2]
		data = data[3:]
		name := parts[where&15]
		if where>>4 < 14 {
			name = path.Join(parts[where>>4], name)
		}
		it := item{Header: tar.Header{
			Name: name, Mode: int64(what) & 0o777, Uid: int(what), ModTime: time.Unix(int64(what)+1, 0), Format: tar.FormatPAX,
		}}
		switch kind % 8 {
		case 0, 1:
			it.Typeflag, it.body = tar.TypeReg, strings.Repeat(string(rune('a'+what%26)), int(what))
		case 2, 3:
			it.Typeflag = tar.TypeDir
			it.PAXRecords = map[string]string{"SCHILY.xattr.user.x": string(rune('a' + what%26))}
		case 4:
			it.Typeflag, it.Linkname = tar.TypeLink, path.Join(targets[what>>4], targets[what&15])
		case 5:
			it.Typeflag, it.Linkname = tar.TypeSymlink, targets[what&15]
		case 6:
			it.Typeflag = tar.TypeFifo
		case 7:
			streams, layer = append(streams, pack(t, layer...)), nil
			continue
		}
		layer = append(layer, it)
	}
	return append(streams, pack(t, layer...))
}

// FuzzDecompress expects damaged data to be a fault of a class that is not banger's, and memory to be bounded.
func FuzzDecompress(f *testing.F) {
	plain := pack(f, base()...)
	f.Add("application/vnd.oci.image.layer.v1.tar+gzip", gzipped(f, plain))
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("application/vnd.oci.image.layer.v1.tar+zstd", enc.EncodeAll(plain, nil))
	f.Add("application/vnd.docker.image.rootfs.diff.tar", plain)
	f.Add("", []byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x00\x00\x00\x00\x1c\xdf\x44\x21\x90\x42\x99\x0d\x00\x00\x00\x00\x00\x01YZ"))
	f.Add("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", plain)
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		r, err := Decompress(mediaType, bytes.NewReader(data))
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(r, 32<<20))
			if closeErr := r.Close(); closeErr != nil {
				t.Error(closeErr)
			}
		}
		if class := fault.ClassOf(err); err != nil && class != fault.Invalid && class != fault.Exhausted {
			t.Errorf("%v is of class %s", err, class)
		}
		layers := []Blob{bytesBlob(mediaType, data)}
		tree, treeErr := OpenTree(context.Background(), layers, Options{Scratch: t.TempDir(), Limits: Limits{Size: 32 << 20, Entries: 10000}})
		if treeErr == nil {
			if err != nil {
				t.Errorf("a tree of damaged data: %v", err)
			}
			tree.Close()
		} else if class := fault.ClassOf(treeErr); class != fault.Invalid && class != fault.Exhausted || errors.Is(treeErr, io.EOF) {
			t.Errorf("%v is of class %s", treeErr, class)
		}
	})
}
