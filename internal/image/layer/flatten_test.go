package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/ext4"
)

// item is an entry of a test's layer.
type item struct {
	tar.Header
	body string
}

func reg(name, body string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}
func dir(name string, mode int64) item {
	return item{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}
func link(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o600, Uid: 99}}
}
func symlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}}
}

// pack writes the tar stream of a layer.
func pack(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, it := range items {
		hdr := it.Header
		hdr.Size = int64(len(it.body))
		if hdr.ModTime.IsZero() && hdr.Typeflag != tar.TypeXGlobalHeader {
			hdr.ModTime = testTime
		}
		if hdr.Format == tar.FormatUnknown {
			hdr.Format = tar.FormatPAX
		}
		if err := tw.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, it.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// blobs makes uncompressed layers of tar streams.
func blobs(streams ...[]byte) []Blob {
	out := make([]Blob, len(streams))
	for i, data := range streams {
		out[i] = bytesBlob("application/vnd.oci.image.layer.v1.tar", data)
	}
	return out
}

func bytesBlob(mediaType string, data []byte) Blob {
	return Blob{MediaType: mediaType, Size: int64(len(data)), Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if _, err := zw.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// anew takes a stream from its beginning when it says so, and remembers that it did.
type anew struct {
	all     []byte
	given   []byte // up by the stream, before it began anew
	restart bool
}

// flat reads all of Flatten's stream.
func flat(layers []Blob, opt Options) (a anew, err error) {
	r := Flatten(context.Background(), layers, opt)
	defer r.Close()
	a.all, err = io.ReadAll(r)
	if errors.Is(err, ext4.ErrAnew) {
		a.restart, a.given = true, a.all
		a.all, err = io.ReadAll(r)
	}
	return a, err
}

// check compares what Flatten and OpenTree make of the layers with the reference. It returns the tree, and whether the
// stream began anew.
func check(t testing.TB, streams ...[]byte) (want map[string]file, restart bool) {
	t.Helper()
	ref := newReference()
	var refErr error
	for _, s := range streams {
		if refErr = ref.layer(s); refErr != nil {
			break
		}
	}
	want = ref.files()
	opt := Options{Scratch: t.TempDir()}
	a, err := flat(blobs(streams...), opt)
	if (err != nil) != (refErr != nil) {
		t.Fatalf("err = %v, that of the reference is %v", err, refErr)
	}
	if err == nil {
		compare(t, "flat", want, readFlat(t, bytes.NewReader(a.all)))
	}
	checkGiven(t, a.given)
	checkTree(t, opt, want, refErr, streams)
	checkFilled(t, opt, want, refErr, streams)
	if left, err := os.ReadDir(opt.Scratch); err != nil || len(left) > 0 {
		t.Fatalf("left in scratch: %v, %v", left, err)
	}
	return want, a.restart
}

// checkGiven expects what was sent in vain to be flat all the same: else its reader would fail before it hears of it.
func checkGiven(t testing.TB, data []byte) {
	t.Helper()
	files, dirs := map[string]bool{}, map[string]bool{}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		hdr, err := tr.Next()
		if err != nil { // it is cut off somewhere
			return
		}
		name := strings.TrimPrefix(hdr.Name, "./")
		if hdr.Typeflag == tar.TypeLink && !files[hdr.Linkname] {
			t.Fatalf("hard link %q to what is not there", name)
		}
		if files[name] || dirs[name] {
			t.Fatalf("%q is there twice", name)
		}
		files[name] = true
		for name, _ = splitName(name); name != ""; name, _ = splitName(name) {
			if dirs[name] = true; files[name] {
				t.Fatalf("%q is a file and a directory", name)
			}
		}
	}
}

func compare(t testing.TB, what string, want, got map[string]file) {
	t.Helper()
	want, all := map[string]file{}, want
	for p, f := range all {
		if g, ok := got[p]; f.implied && ok {
			f.Time, f.implied = g.Time, g.implied
		}
		want[p] = f
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(file{})); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// checkTree compares OpenTree with the reference.
func checkTree(t testing.TB, opt Options, want map[string]file, refErr error, streams [][]byte) {
	t.Helper()
	tree, err := OpenTree(context.Background(), blobs(streams...), opt)
	if (err != nil) != (refErr != nil) {
		t.Fatalf("tree: err = %v, that of the reference is %v", err, refErr)
	}
	if err != nil {
		return
	}
	defer tree.Close()
	got := newReference()
	byEntry := map[*Entry]*file{}
	err = tree.Walk("/", func(p string, e *Entry) error {
		f := byEntry[e]
		if f == nil {
			hdr := e.Header(p)
			made, err := newEntryLike(hdr)
			if err != nil {
				return err
			}
			if f = made; e.Type == tar.TypeReg {
				r, err := tree.Open(e)
				if err != nil {
					return err
				}
				body, err := io.ReadAll(r)
				if f.Body = string(body); err != nil {
					return err
				}
			}
			byEntry[e] = f
		}
		got.at[clean(p)] = f
		if same, ok := tree.LookupNoFollow(p); !ok || same != e {
			return fmt.Errorf("lookup of %q does not find it", p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	files := got.files()
	compare(t, "tree", want, files)
	for p, f := range files {
		if e, ok := tree.LookupNoFollow(p); !ok || f.Type != "dir" && int(e.Links) != f.Links {
			t.Fatalf("%q has %d links, want %d", p, e.Links, f.Links)
		}
	}
}

const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// base is a layer like that of a distribution, with its parts of /usr in one place.
func base() []item {
	return []item{
		dir("./", 0o755), symlink("./bin", "usr/bin"), symlink("./lib", "/usr/lib"), symlink("./abs", "/../../etc"),
		dir("etc/", 0o755), reg("etc/passwd", "root"), reg("etc/shadow", "secret"), reg("etc/old/a", "a"), reg("etc/old/b", "b"),
		dir("usr/", 0o755), dir("usr/bin", 0o755),
		{tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/su", Mode: 0o4755}, "su"},
		{tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/ping", Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.note": "\x00n\n",
			"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "label",
		}}, "ping"},
		link("usr/bin/ping4", "./usr/bin/ping"), link("usr/bin/ping6", "/usr/bin/ping"),
		dir("usr/lib/", 0o755), reg("usr/lib/libc.so", "libc"), reg("usr/lib/libm.so", "libm"),
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Mode: 0o660, Gid: 6, Devmajor: 8, Devminor: 300}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "run/fifo", Mode: 0o600}},
		reg("odd/new\nline", "1"), reg("odd/\xff\xfe", "2"), reg("odd/"+strings.Repeat("l", 255), "3"),
		reg("odd/"+strings.Repeat("deep/", 100)+"file", "4"), reg("../../../escape", "5"), reg("/absolute", "6"),
	}
}

func TestFlattenIsLikeUnpacking(t *testing.T) {
	for name, tc := range map[string]struct {
		layers  [][]item
		restart bool // something was sent too early
		check   map[string]string
	}{
		"one layer":  {layers: [][]item{base()}, check: map[string]string{"usr/bin/ping6": "ping", "escape": "5", "absolute": "6"}},
		"no entries": {layers: [][]item{{}, {}}},
		"whiteouts": {
			layers: [][]item{base(), {reg("etc/.wh.shadow", ""), dir("etc/.wh.old", 0), reg(".wh.nothing", ""), reg("usr/bin/.wh.ping", "")}},
			check:  map[string]string{"etc/shadow": "gone", "etc/old/a": "gone", "usr/bin/ping": "gone", "usr/bin/ping4": "ping"},
		},
		"whiteouts spare their own layer": {
			layers: [][]item{
				{reg("d/low", "l"), reg("e/low", "l"), reg("f", "low")},
				{reg("d/high", "h"), reg("d/.wh..wh..opq", ""), reg("d/higher", "h"), reg("e/high", "h"), reg(".wh.e", ""), reg("f", "high"), reg(".wh.f", "")},
			},
			check: map[string]string{"d/low": "gone", "d/high": "h", "d/higher": "h", "e/low": "gone", "e/high": "h", "f": "high"},
		},
		"opaque root":      {layers: [][]item{base(), {reg(".wh..wh..opq", ""), reg("only", "1")}}, check: map[string]string{"etc/passwd": "gone", "only": "1"}},
		"opaque elsewhere": {layers: [][]item{base(), {reg("nowhere/.wh..wh..opq", ""), reg("etc/passwd/.wh..wh..opq", "")}}, check: map[string]string{"etc/passwd": "root"}},
		"opaque by symbolic link": {
			layers: [][]item{base(), {reg("lib/.wh..wh..opq", ""), reg("lib/libx.so", "x")}},
			check:  map[string]string{"usr/lib/libc.so": "gone", "usr/lib/libx.so": "x"},
		},
		"directory over directory": {layers: [][]item{base(), {dir("usr/bin", 0o711)}}, check: map[string]string{"usr/bin/su": "su"}},
		"directory over file":      {layers: [][]item{base(), {dir("etc/passwd", 0o700), reg("etc/passwd/x", "x")}}, check: map[string]string{"etc/passwd/x": "x"}},
		"file over directory":      {layers: [][]item{base(), {reg("etc", "f")}, {dir("etc", 0o700), reg("etc/new", "n")}}, check: map[string]string{"etc/new": "n", "etc/passwd": "gone"}},
		"directory over symbolic link": {
			layers: [][]item{base(), {dir("lib", 0o755), reg("lib/foo", "f")}},
			check:  map[string]string{"lib/foo": "f", "usr/lib/foo": "gone", "usr/lib/libc.so": "libc"},
		},
		"below symbolic links": {
			layers: [][]item{base(), {reg("lib/libc.so", "new"), reg("bin/x", "x"), reg("lib/.wh.libm.so", "")}},
			check:  map[string]string{"usr/lib/libc.so": "new", "usr/bin/x": "x", "usr/lib/libm.so": "gone"},
		},
		"below an unusual symbolic link": {
			layers:  [][]item{base(), {reg("abs/y", "y")}},
			restart: true, check: map[string]string{"etc/y": "y"},
		},
		"below a dangling link": {layers: [][]item{{symlink("l", "../a/../b/c"), reg("l/x", "x")}}, check: map[string]string{"b/c/x": "x", "a": "gone"}},
		"hard link into another layer": {
			layers: [][]item{base(), {link("usr/bin/ping7", "usr/bin/ping"), link("c", "lib/libc.so")}, {reg("usr/bin/.wh.ping", ""), reg("usr/lib/libc.so", "new")}},
			check:  map[string]string{"usr/bin/ping7": "ping", "usr/bin/ping4": "ping", "usr/bin/ping": "gone", "c": "libc", "usr/lib/libc.so": "new"},
		},
		"one name of a hard link replaced": {
			layers: [][]item{{reg("a", "old"), link("b", "a"), link("c", "a")}, {reg("a", "new")}},
			check:  map[string]string{"a": "new", "b": "old", "c": "old"},
		},
		"hard link to a symbolic link": {layers: [][]item{base(), {link("l2", "lib"), reg("l2/z", "z")}}, check: map[string]string{"usr/lib/z": "z"}},
		"a path twice": {
			layers:  [][]item{{reg("a", "1"), reg("d/x", "x"), reg("a", "2"), reg("d", "file")}},
			restart: true, check: map[string]string{"a": "2", "d": "file"},
		},
		"a path twice in an upper layer": {
			layers:  [][]item{base(), {dir("etc", 0o755), reg("etc/x", "1"), reg("etc/x", "2")}},
			restart: true, check: map[string]string{"etc/x": "2"},
		},
		"a path twice by a link of a lower layer": {
			layers:  [][]item{base(), {dir("usr", 0o755), dir("usr/lib", 0o755), reg("usr/lib/x", "1"), reg("lib/x", "2")}},
			restart: true, check: map[string]string{"usr/lib/x": "2"},
		},
		"the root": {layers: [][]item{{dir("/", 0o700)}, {dir("./", 0o751), reg("x", "")}}},
		"global header": {layers: [][]item{{
			{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}}, reg("x", "x"),
		}}},
		"symbolic link changed on the way": {
			layers: [][]item{base(), {dir("usr", 0o755), symlink("usr/lib", "../new"), reg("lib/libc.so", "new")}},
			check:  map[string]string{"new/libc.so": "new"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var streams [][]byte
			for _, l := range tc.layers {
				streams = append(streams, pack(t, l...))
			}
			got, restart := check(t, streams...)
			if restart != tc.restart {
				t.Errorf("began anew: %v", restart)
			}
			for p, want := range tc.check {
				f, ok := got[p]
				if !ok {
					f.Body = "gone"
				}
				if f.Body != want {
					t.Errorf("%q is %q, want %q", p, f.Body, want)
				}
			}
		})
	}
}

// TestFlattenStopsPromptly closes a stream whose layer does not come, and cancels another.
func TestFlattenStopsPromptly(t *testing.T) {
	slow := Blob{MediaType: "", Open: func(ctx context.Context) (io.ReadCloser, error) {
		pr, pw := io.Pipe()
		context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
		return pr, nil
	}}
	layers := []Blob{slow, bytesBlob("", pack(t, base()...))}
	opt := Options{Scratch: t.TempDir()}
	began := time.Now()
	r := Flatten(t.Context(), layers, opt)
	go r.Close()
	if _, err := io.ReadAll(r); err == nil {
		t.Error("a closed stream has an end")
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	r = Flatten(ctx, layers, opt)
	cancel(cause)
	if _, err := io.ReadAll(r); !errors.Is(err, cause) {
		t.Errorf("err = %v", err)
	}
	r.Close()
	if time.Since(began) > time.Minute {
		t.Errorf("it took %v", time.Since(began))
	}
}
