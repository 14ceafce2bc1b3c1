package build

import (
	"bytes"
	"context"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
	"banger/internal/image/layer"
)

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
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

func zstded(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

func TestAddUnpacks(t *testing.T) {
	plain := tarOf(t, file{name: "./"}, file{name: "d/", mode: 0o700, uid: 1, gid: 2}, file{name: "d/f", data: "F", mode: 0o4755, uid: 3, gid: 4},
		file{name: "hard", link: "=d/f"}, file{name: "soft", link: "d/f"}, file{name: "deep/er/g", data: "G"}, file{name: "/abs", data: "A"}, file{name: "d/f2", data: "1"}, file{name: "d/f2", data: "22"})
	unpacked := []string{
		"x/ 755 0:0", "x/abs 644 0:0 A", "x/d/ 700 1:2", "x/d/f 4755 3:4 F", "x/d/f2 644 0:0 22", "x/deep/ 755 0:0", "x/deep/er/ 755 0:0", "x/deep/er/g 644 0:0 G",
		"x/hard = x/d/f", "x/soft -> d/f 0:0",
	}
	lib := tarOf(t, file{name: "lib/", mode: 0o700}, file{name: "lib/new", data: "N"}, file{name: "abs/q", data: "Q"}, file{name: "f/", uid: 4}, file{name: "d", data: "now a file"})
	dir := contextDir(t, file{name: "a.tar", data: string(plain)}, file{name: "a.tgz", data: string(gzipped(t, plain))}, file{name: "a.zst", data: string(zstded(t, plain))},
		file{name: "lib.tar", data: string(lib)}, file{name: "text", data: "text"}, file{name: "empty"}, file{name: "bad.tgz", data: "\x1f\x8bnot gzip"},
		file{name: "up.tar", data: string(tarOf(t, file{name: "../x", data: "X"}))}, file{name: "cut.tar", data: string(plain[:1400])},
		file{name: "links.tar", data: string(tarOf(t, file{name: "l", link: "=none"}))}, file{name: "out.tar", data: string(tarOf(t, file{name: "l", link: "/etc"}, file{name: "l/passwd", data: "mine"}))},
		file{name: "wh.tar", data: string(tarOf(t, file{name: "d/.wh.x"}))}, file{name: "twice.tar", data: string(tarOf(t, file{name: "a", data: "1"}, file{name: "b", link: "=a"}, file{name: "a", data: "2"}))},
		file{name: "changes.tar", data: string(tarOf(t, file{name: "a", data: "1"}, file{name: "b/c/d", data: "2"}, file{name: "b", data: "3"}, file{name: "a/"}, file{name: "a/e", data: "4"}))})
	for _, tc := range []struct {
		name, text string
		want       []string
		err        string
	}{
		{name: "tar", text: "ADD a.tar /x", want: unpacked},
		{name: "gzip", text: "ADD a.tgz /x/", want: unpacked},
		{name: "zstd", text: "ADD a.zst /x", want: unpacked},
		{name: "chown", text: "ADD --chown=9 lib.tar /x", want: []string{"x/ 755 9:9", "x/abs/ 755 9:9", "x/abs/q 644 9:9 Q", "x/d 644 9:9 now a file", "x/f/ 755 9:9", "x/lib/ 700 9:9", "x/lib/new 644 9:9 N"}},
		{name: "not by COPY", text: "COPY wh.tar text /x/", want: []string{"x/ 755 0:0", "x/text 644 0:0 text", "x/wh.tar 644 0:0 " + string(tarOf(t, file{name: "d/.wh.x"}))}},
		{name: "unless told not to", text: "ADD --unpack=false wh.tar /x/", want: []string{"x/ 755 0:0", "x/wh.tar 644 0:0 " + string(tarOf(t, file{name: "d/.wh.x"}))}},
		{name: "what is no archive", text: "ADD text empty bad.tgz /x/", want: []string{"x/ 755 0:0", "x/bad.tgz 644 0:0 \x1f\x8bnot gzip", "x/empty 644 0:0 ", "x/text 644 0:0 text"}},
		{name: "over what is there", text: "BASE\nADD lib.tar /", want: []string{"d 644 0:0 now a file", "f/ 755 4:0", "lib/ 700 0:0", "lib/new 644 0:0 N", "usr/lib/q 644 0:0 Q"}},
		{name: "links stay in the destination", text: "BASE\nADD out.tar /x", want: []string{"x/ 755 0:0", "x/etc/ 755 0:0", "x/etc/passwd 644 0:0 mine", "x/l -> /etc 0:0"}},
		{name: "files that become directories", text: "ADD changes.tar /", want: []string{"a/ 755 0:0", "a/e 644 0:0 4", "b 644 0:0 3"}},
		{name: "with another file over it", text: "ADD a.tar text /x/d/\nADD a.tar text /x/d/", want: append([]string{"x/ 755 0:0"}, replaced(unpacked, "x/", "x/d/", "x/d/text 644 0:0 text")...)},
		{name: "name that leads out", text: "ADD up.tar /x", err: "Dockerfile:2: ADD up.tar /x: unpack up.tar: the name ../x leads out of the archive"},
		{name: "cut off", text: "ADD cut.tar /x", err: "Dockerfile:2: ADD cut.tar /x: unpack cut.tar: it is damaged: unexpected EOF"},
		{name: "hard link to nothing", text: "ADD links.tar /", err: "Dockerfile:2: ADD links.tar /: unpack links.tar: l is a hard link to none, which is not before it in the archive"},
		{name: "whiteout", text: "ADD wh.tar /", err: "Dockerfile:2: ADD wh.tar /: unpack wh.tar: d/.wh.x cannot be in an image: a name with .wh. at its beginning means a deleted file"},
		{name: "replaced after a link", text: "ADD twice.tar /", err: "Dockerfile:2: ADD twice.tar /: unpack twice.tar: a is replaced after a hard link to it: ADD what replaces it in a step of its own"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			b.images["base"] = Base{Layers: mustLayers(b.layer(base...))}
			text, from := tc.text, "FROM scratch\n"
			if rest, ok := strings.CutPrefix(text, "BASE\n"); ok {
				text, from = rest, "FROM base\n"
			}
			out, err := b.build(t.Context(), from+text, dir)
			if tc.err != "" {
				if err == nil || err.Error() != tc.err {
					t.Fatalf("error:\n got %v\nwant %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := b.tree(out.Layers)
			if from == "FROM base\n" {
				got = without(got, b.tree(b.images["base"].Layers))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestArchiveOfTooMuch(t *testing.T) {
	dir := contextDir(t, file{name: "bomb.tgz", data: string(gzipped(t, tarOf(t, file{name: "a"}, file{name: "zeros", data: strings.Repeat("0", 1<<20)}, file{name: "b"})))})
	_, err := newBench(t).build(t.Context(), "FROM scratch\nADD bomb.tgz /", dir, func(o *Options) { o.Limits.Size = 100 << 10 })
	if want := "Dockerfile:2: ADD bomb.tgz /: unpack bomb.tgz: it holds more than 100K"; err == nil || err.Error() != want || !fault.Is(err, fault.Exhausted) {
		t.Errorf("%v, want %s", err, want)
	}
}

// replaced are lines with another directory at their beginnings, and one more line at the end of it.
func replaced(lines []string, from, to, more string) []string {
	var out []string
	for _, l := range lines {
		rest, _ := strings.CutPrefix(l, from)
		rest = strings.ReplaceAll(rest, "= "+from, "= "+to)
		out = append(out, to+rest)
	}
	return append(out, more)
}

// A layer that a command made is laid over what is there: deletions, directories made anew, links.
func TestRootfsFollowsLayers(t *testing.T) {
	b := newBench(t)
	b.images["base"] = Base{Layers: mustLayers(b.layer(base...), b.layer(file{name: "keep/a"}, file{name: "opq/old/"}, file{name: "gone/x/"}, file{name: "again/old/"}))}
	steps := [][]file{
		{{name: ".wh.f"}, {name: "gone/.wh.x"}, {name: "opq/new/"}, {name: "opq/.wh..wh..opq"}, {name: ".wh.again"}, {name: "again/new/"}, {name: "lnk", link: "usr"}},
		{{name: "lnk/deep/implied/z", data: "Z"}, {name: "etc/passwd", data: "late:x:7:8::/:\n"}, {name: "keep", data: "file"}, {name: "hard", link: "=etc/passwd"}},
		{{name: ".wh.keep"}, {name: "keep/"}},
	}
	n := 0
	b.run = func(context.Context, RunJob) ([]file, error) { n++; return steps[n-1], nil }
	dir := contextDir(t, file{name: "a", data: "A"})
	out := b.mustBuild("FROM base\nCOPY a /first/\nRUN 1\nCOPY a /f\nCOPY a /lnk/lib/\nRUN 2\nCOPY --chown=late a /usr/deep/implied/\nRUN 3\nCOPY a /keep/a\nWORKDIR /gone/x", dir)
	r := rootOf(t, b, out)
	for at, want := range map[string]bool{
		"/f": true, "/gone": true, "/gone/x": true, "/opq/old": false, "/opq/new": true, "/again/old": false, "/again/new": true,
		"/usr/deep/implied/z": true, "/keep": true, "/keep/a": true, "/lnk": true, "/hard": true, "/first/a": true, "/usr/lib/a": true,
	} {
		found, err := r.find(at)
		if err != nil || (found != nil) != want {
			t.Errorf("%s is there: %v, want %v (%v)", at, found != nil, want, err)
		}
	}
	lines := b.tree(out.Layers)
	for _, want := range []string{"f 644 0:0 A", "usr/lib/a 644 0:0 A", "usr/deep/implied/a 644 7:8 A", "keep/a 644 0:0 A", "gone/x/ 755 0:0"} {
		if !contains(lines, want) {
			t.Errorf("no %q in %q", want, lines)
		}
	}
	compareTrees(t, b, out, r)
}

// rootOf is what the stages of a build take the result for, layer by layer.
func rootOf(t *testing.T, b *bench, out Result) *rootfs {
	t.Helper()
	bb := &builder{opt: Options{Blobs: b.blobs, Scratch: b.dir}}
	lower, err := bb.openTree(t.Context(), out.Layers[:1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lower.close)
	r := newRootfs(lower, 1)
	for _, l := range out.Layers[1:] {
		if err := bb.apply(t.Context(), r, l); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// compareTrees compares a rootfs with what package layer makes of the same layers.
func compareTrees(t *testing.T, b *bench, out Result, r *rootfs) {
	t.Helper()
	bb := &builder{opt: Options{Blobs: b.blobs, Scratch: b.dir}}
	whole, err := bb.openTree(t.Context(), out.Layers)
	if err != nil {
		t.Fatal(err)
	}
	defer whole.close()
	known := map[string]bool{}
	err = whole.tree.Walk("/", func(name string, e *layer.Entry) error {
		at := path.Join("/", name)
		known[at] = true
		if n, err := r.find(at); err != nil || n == nil || n.typ != e.Type {
			t.Errorf("%s: %v %v, want type %c", at, n, err, e.Type)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for at := range r.over {
		if n, err := r.find(at); (n != nil) != known[at] || err != nil {
			t.Errorf("%s is there: %v, want %v (%v)", at, n != nil, known[at], err)
		}
	}
}

func FuzzArchive(f *testing.F) {
	var t testing.T
	f.Add(tarOf(&t, file{name: "a/"}, file{name: "a/b", data: "B"}, file{name: "c", link: "=a/b"}, file{name: "d", link: "../a"}))
	f.Add(tarOf(&t, file{name: "l", link: "/x"}, file{name: "l/m", data: "M"}, file{name: "l", data: "N"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := newPlacer(t.Context(), newRootfs(nil, 0))
		source := picked{word: "f", name: "f", top: memoryNode("f", data, 0o644), local: true}
		ok, err := p.unpack("/dest", source)
		if err != nil || !ok {
			return
		}
		b := newBench(t)
		made, err := (&builder{opt: Options{Blobs: b.blobs}}).writeLayer(t.Context(), p.items, p.archives)
		if err != nil {
			return
		}
		// Whatever was in it, the layer is one that can be read, and has nothing outside of the destination.
		for _, line := range b.tree(mustLayers(made)) {
			if !strings.HasPrefix(line, "dest") {
				t.Errorf("outside of the destination: %q", line)
			}
		}
	})
}
