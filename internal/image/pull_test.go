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
