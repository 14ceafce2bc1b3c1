package build

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/dockerfile"
	"banger/internal/image/layer"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// when is the time of files in tests.
var when = time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC)

// file is a file of a context, a layer or an archive in tests.
type file struct {
	name string // a slash at its end: a directory
	data string
	link string // symbolic; with a "=" before it hard
	mode int64
	uid  int
	gid  int
}

func (f file) header() *tar.Header {
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.data)), Mode: f.mode, Uid: f.uid, Gid: f.gid, ModTime: when}
	if hdr.Mode == 0 {
		hdr.Mode = 0o644
	}
	if strings.HasSuffix(f.name, "/") {
		hdr.Typeflag = tar.TypeDir
		if f.mode == 0 {
			hdr.Mode = 0o755
		}
	}
	if target, ok := strings.CutPrefix(f.link, "="); ok {
		hdr.Typeflag, hdr.Linkname = tar.TypeLink, target
	} else if f.link != "" {
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, f.link
	}
	return hdr
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(f.header()); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// contextDir makes a directory with files.
func contextDir(t testing.TB, files ...file) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		name := filepath.Join(dir, f.name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		hdr := f.header()
		var err error
		switch hdr.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(f.link, name)
		case tar.TypeLink:
			err = os.Link(filepath.Join(dir, hdr.Linkname), name)
		default:
			err = os.WriteFile(name, []byte(f.data), 0o600)
		}
		if err == nil && hdr.Typeflag != tar.TypeSymlink {
			if err = os.Chmod(name, os.FileMode(hdr.Mode&0o777)); err == nil {
				err = os.Chtimes(name, when, when)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// Directories have got the time of what was put into them.
	for _, f := range files {
		if !strings.HasSuffix(f.name, "/") {
			continue
		}
		if err := os.Chtimes(filepath.Join(dir, f.name), when, when); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// bench is what a test builds with. It is the Host too.
type bench struct {
	t     testing.TB
	blobs *blob.Store
	cache *Cache
	dir   string // scratch

	images map[string]Base
	run    func(ctx context.Context, job RunJob) ([]file, error) // what a command changes; may be nil

	mu     sync.Mutex // guards the fields below
	jobs   []RunJob
	pulls  []string
	events []Event
}

func newBench(t testing.TB) *bench {
	dir := t.TempDir()
	return &bench{
		t: t, blobs: blob.Open(filepath.Join(dir, "blobs")), cache: OpenCache(filepath.Join(dir, "cache")),
		dir: t.TempDir(), images: map[string]Base{},
	}
}

// layer puts a layer into the store.
func (b *bench) layer(files ...file) source.Layer {
	b.t.Helper()
	w, err := b.blobs.Create()
	if err != nil {
		b.t.Fatal(err)
	}
	zw := gzip.NewWriter(w)
	if _, err := zw.Write(tarOf(b.t, files...)); err != nil {
		b.t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		b.t.Fatal(err)
	}
	digest, size, err := w.Commit()
	if err != nil {
		b.t.Fatal(err)
	}
	return source.Layer{MediaType: mediaType, Digest: digest, Size: size}
}

// Base implements Host.
func (b *bench) Base(_ context.Context, ref, platform string, _ progress.Func) (Base, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pulls = append(b.pulls, ref+" "+platform)
	base, ok := b.images[ref]
	if !ok {
		return Base{}, fault.New(fault.NotFound, "no image is called %s", ref)
	}
	return base, nil
}

// Run implements Host.
func (b *bench) Run(ctx context.Context, job RunJob) (source.Layer, error) {
	b.mu.Lock()
	b.jobs = append(b.jobs, job)
	n := len(b.jobs)
	b.mu.Unlock()
	if b.run == nil {
		return b.layer(file{name: fmt.Sprintf("ran-%d", n)}), nil
	}
	files, err := b.run(ctx, job)
	if err != nil || len(files) == 0 {
		return source.Layer{}, err
	}
	return b.layer(files...), nil
}

// Event implements Log.
func (b *bench) Event(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
}

// commands are those that were run since the last call.
func (b *bench) commands() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, j := range b.jobs {
		out = append(out, j.Argv[len(j.Argv)-1])
	}
	b.jobs = nil
	return out
}

// log is the events since the last call as lines, without durations.
func (b *bench) log() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, e := range b.events {
		out = append(out, strings.TrimSuffix(fmt.Sprintf("%d %s %s", e.Step, e.Kind, e.Text), " "))
	}
	b.events = nil
	return out
}

// setup is how a test changes the options of a build.
type setup func(*Options)

func ignoring(patterns string) setup {
	return func(o *Options) {
		ignore, err := dockerfile.ParseIgnore(".dockerignore", []byte(patterns))
		if err != nil {
			panic(err)
		}
		o.Ignore = ignore
	}
}

func (b *bench) build(ctx context.Context, text, dir string, change ...setup) (Result, error) {
	b.t.Helper()
	plan, err := dockerfile.Parse("Dockerfile", []byte(text), dockerfile.Options{BuildPlatform: "linux/amd64"})
	if err != nil {
		b.t.Fatal(err)
	}
	opt := Options{Plan: plan, Context: dir, Host: b, Blobs: b.blobs, Cache: b.cache, Scratch: b.dir, Log: b}
	for _, c := range change {
		c(&opt)
	}
	return Build(ctx, opt)
}

func (b *bench) mustBuild(text, dir string, change ...setup) Result {
	b.t.Helper()
	out, err := b.build(context.Background(), text, dir, change...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// tree lists what layers hold: "path mode uid:gid contents", "path/ mode uid:gid", "path -> target".
func (b *bench) tree(layers []source.Layer) []string {
	b.t.Helper()
	return listTree(b.t, b.blobs, b.dir, layers)
}

func listTree(t testing.TB, blobs *blob.Store, scratch string, layers []source.Layer) []string {
	t.Helper()
	b := &builder{opt: Options{Blobs: blobs, Scratch: scratch}}
	tree, err := b.openTree(context.Background(), layers)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	var out []string
	first := map[*layer.Entry]string{}
	err = tree.tree.Walk("/", func(name string, e *layer.Entry) error {
		if name == "." {
			return nil
		}
		line := fmt.Sprintf("%s %o %d:%d", name, e.Mode, e.UID, e.GID)
		switch e.Type {
		case tar.TypeDir:
			line = fmt.Sprintf("%s/ %o %d:%d", name, e.Mode, e.UID, e.GID)
		case tar.TypeSymlink:
			line = fmt.Sprintf("%s -> %s %d:%d", name, e.Linkname, e.UID, e.GID)
		case tar.TypeReg:
			if other, ok := first[e]; ok {
				line = name + " = " + other
				break
			}
			first[e] = name
			r, err := tree.tree.Open(e)
			if err != nil {
				return err
			}
			data, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			line += " " + string(data)
		default:
			line += fmt.Sprintf(" type %c %d:%d", e.Type, e.Devmajor, e.Devminor)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// times lists the modification times of the layers' files.
func (b *bench) times(layers []source.Layer) map[string]string {
	b.t.Helper()
	bb := &builder{opt: Options{Blobs: b.blobs, Scratch: b.dir}}
	tree, err := bb.openTree(context.Background(), layers)
	if err != nil {
		b.t.Fatal(err)
	}
	defer tree.close()
	out := map[string]string{}
	err = tree.tree.Walk("/", func(name string, e *layer.Entry) error {
		out[path.Clean(name)] = e.ModTime.UTC().Format(time.DateOnly)
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// contains reports whether a line begins so.
func contains(lines []string, prefix string) bool {
	return slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, prefix) })
}

func mustLayers(layers ...source.Layer) []source.Layer { return layers }
