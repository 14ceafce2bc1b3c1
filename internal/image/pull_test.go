package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/source"
)

// fakeSource is a source.Source of functions.
type fakeSource struct {
	fetch  func(ctx context.Context, req source.Request) (source.Tree, error)
	remove func(staging string) error
}

func (f fakeSource) Fetch(ctx context.Context, req source.Request) (source.Tree, error) {
	return f.fetch(ctx, req)
}

func (f fakeSource) Remove(_ context.Context, staging string) error {
	if f.remove == nil {
		return nil
	}
	return f.remove(staging)
}

func tree(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./etc/", Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func streams(data []byte, end error) func(context.Context, source.Request) (source.Tree, error) {
	return func(_ context.Context, req source.Request) (source.Tree, error) {
		if err := os.WriteFile(filepath.Join(req.Staging, "work"), nil, 0o600); err != nil {
			return source.Tree{}, err
		}
		r := io.Reader(bytes.NewReader(data))
		if end != nil {
			r = io.MultiReader(r, failing{end})
		}
		return source.Tree{Tar: io.NopCloser(r), Origin: "a test", Config: source.Config{User: "root", Shell: "/bin/sh"}}, nil
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func cleans(staging string) error { return os.RemoveAll(filepath.Join(staging, "work")) }

func TestPull(t *testing.T) {
	absent := fault.New(fault.Unavailable, "not here").WithHint("banger doctor")
	refuses := fakeSource{fetch: func(context.Context, source.Request) (source.Tree, error) { return source.Tree{}, absent }}
	entry := Entry{Name: "x", Kernel: "k", Sources: []Origin{{Kind: "newer"}, {Kind: "first"}, {Kind: "second"}}}
	for name, tc := range map[string]struct {
		sources map[string]source.Source
		want    fault.Class // empty: success
		message string
	}{
		"first":         {map[string]source.Source{"first": fakeSource{streams(tree(t), nil), cleans}}, "", ""},
		"second":        {map[string]source.Source{"first": refuses, "second": fakeSource{streams(tree(t), nil), cleans}}, "", ""},
		"none":          {map[string]source.Source{}, fault.Unavailable, "no source"},
		"all refuse":    {map[string]source.Source{"first": refuses, "second": refuses}, fault.Unavailable, "not here"},
		"cut off":       {map[string]source.Source{"first": fakeSource{streams(tree(t)[:700], nil), cleans}}, fault.Invalid, "cut off"},
		"fails late":    {map[string]source.Source{"first": fakeSource{streams(tree(t)[:512], fault.New(fault.Denied, "bad key")), cleans}}, fault.Denied, "bad key"},
		"remove fails":  {map[string]source.Source{"first": fakeSource{streams(tree(t), nil), failOnce()}}, fault.Internal, "busy"},
		"second is bad": {map[string]source.Source{"first": refuses, "second": fakeSource{streams(nil, nil), cleans}}, fault.Unavailable, "cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			staging := t.TempDir()
			dir, m, err := Pull(t.Context(), entry, PullOptions{Staging: staging, Sources: tc.sources})
			if tc.want != "" {
				if !fault.Is(err, tc.want) || !strings.Contains(err.Error(), tc.message) {
					t.Errorf("err = %v (%s)", err, fault.ClassOf(err))
				}
				if left, _ := os.ReadDir(staging); len(left) > 0 {
					t.Errorf("left in staging: %v", left)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			loaded, err := Load(dir)
			if err != nil || loaded.Digest != m.Digest {
				t.Errorf("loaded %+v, err %v", loaded, err)
			}
			if m.Name != "x" || m.Kernel != "k" || m.Size != ext4.DefaultSize || m.Used == 0 || !strings.HasPrefix(m.Digest, "sha256:") {
				t.Errorf("manifest %+v", m)
			}
			if err := RemoveStaged(t.Context(), dir); err != nil {
				t.Error(err)
			}
		})
	}
}

// failOnce is a Remove that fails the first time.
func failOnce() func(string) error {
	failed := false
	return func(staging string) error {
		if !failed {
			failed = true
			return errors.New("busy")
		}
		return cleans(staging)
	}
}

func TestPullCancelled(t *testing.T) {
	staging := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	defer pw.Close()
	src := fakeSource{fetch: func(context.Context, source.Request) (source.Tree, error) {
		go cancel()
		return source.Tree{Tar: pr}, nil
	}, remove: func(string) error { return nil }}
	_, _, err := Pull(ctx, Entry{Name: "x", Sources: []Origin{{Kind: "a"}}}, PullOptions{
		Staging: staging, Sources: map[string]source.Source{"a": src},
	})
	if !fault.Is(err, fault.Cancelled) {
		t.Errorf("err = %v", err)
	}
	if left, _ := os.ReadDir(staging); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
}

func TestRemoveStagedIsIdempotent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image-1")
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveStaged(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoadFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want fault.Class
	}{
		"missing": {"", fault.NotFound},
		"broken":  {"{", fault.Internal},
		"older":   {`{"layout":0,"name":"x"}`, fault.Conflict},
	} {
		dir := t.TempDir()
		if tc.text != "" {
			if err := os.WriteFile(filepath.Join(dir, ManifestFile), []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Load(dir); !fault.Is(err, tc.want) {
			t.Errorf("%s: %v (%s)", name, err, fault.ClassOf(err))
		}
	}
}

// The default is in the catalog, and every entry is whole.
func TestCatalog(t *testing.T) {
	if first := Catalog()[0].Name; first != Default {
		t.Errorf("the first is %s", first)
	}
	for _, e := range Catalog() {
		if got, err := Resolve(e.Name); err != nil || got.Name != e.Name || e.Kernel == "" || e.Description == "" || len(e.Sources) == 0 {
			t.Errorf("%+v, %v", e, err)
		}
		if name, err := ParseName(e.Name); err != nil || name != e.Name {
			t.Errorf("%q, %v", name, err)
		}
	}
}

// bringing is the stream of a tree whose layers can be brought without being read.
type bringing struct {
	io.Reader
	brought, closed *int
	err             error
}

func (b bringing) Bring(context.Context) error { *b.brought++; return b.err }
func (b bringing) Close() error                { *b.closed++; return nil }

// TestPullShares pulls images with the same layers: the second has the file of the first.
func TestPullShares(t *testing.T) {
	images, staging := t.TempDir(), t.TempDir()
	brought, closed := 0, 0
	gone := fault.New(fault.Unavailable, "the registry is gone")
	pull := func(config string, readable bool, images string, bringErr error, layers ...string) (string, Manifest, error) {
		src := fakeSource{fetch: func(context.Context, source.Request) (source.Tree, error) {
			stream := io.Reader(failing{errors.New("it was read")})
			if readable {
				stream = bytes.NewReader(tree(t))
			}
			tree := source.Tree{
				Tar: bringing{stream, &brought, &closed, bringErr}, Digest: "sha256:" + config, Config: source.Config{User: config},
			}
			for _, l := range layers {
				tree.Layers = append(tree.Layers, source.Layer{Digest: l})
			}
			return tree, nil
		}}
		e := Entry{Name: config, Sources: []Origin{{Kind: "k"}}}
		return Pull(t.Context(), e, PullOptions{Staging: staging, Images: images, Sources: map[string]source.Source{"k": src}})
	}
	first, m, err := pull("one", true, images, nil, "a", "b")
	if err != nil || brought != 0 {
		t.Fatal(err, brought)
	}
	place := filepath.Join(images, "one")
	if err := os.Rename(first, place); err != nil {
		t.Fatal(err)
	}
	second, n, err := pull("two", false, images, nil, "a", "b")
	if err != nil || brought != 1 || closed != 2 {
		t.Fatal(err, brought, closed)
	}
	if n.Digest != "sha256:two" || n.Config.User != "two" || n.Used != m.Used || n.Entries != m.Entries || n.Size != m.Size {
		t.Errorf("%+v", n)
	}
	a, errA := os.Stat(Rootfs(place))
	b, errB := os.Stat(Rootfs(second))
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Errorf("the file is not shared: %v, %v", errA, errB)
	}
	if _, _, err := pull("three", false, images, gone, "a", "b"); !errors.Is(err, gone) {
		t.Errorf("layers that cannot be brought: %v", err)
	}
	for name, layers := range map[string][]string{"other": {"a"}, "order": {"b", "a"}, "none": {}} {
		if _, _, err := pull("four", true, images, nil, layers...); err != nil || brought != 2 {
			t.Errorf("%s: %v, brought %d times", name, err, brought)
		}
	}
	if err := os.Truncate(Rootfs(place), 1000); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pull("five", true, images, nil, "a", "b"); err != nil || brought != 2 {
		t.Errorf("a file that is damaged: %v, brought %d times", err, brought)
	}
	if _, _, err := pull("six", true, "", nil, "a", "b"); err != nil || brought != 2 {
		t.Errorf("nothing to share with: %v, brought %d times", err, brought)
	}
}
