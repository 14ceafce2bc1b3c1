package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/bundle"
	"banger/internal/image/source"
	"banger/internal/kernel"
	"banger/internal/signature"
)

// aBundle writes a bundle with a kernel to dir, signed.
func aBundle(t *testing.T, dir string, k signature.SecretKey) string {
	t.Helper()
	kern := t.TempDir()
	magic := make([]byte, 4096)
	copy(magic[1024+56:], "\x53\xef")
	for name, data := range map[string][]byte{kernel.ImageFile: []byte("a kernel"), kernel.ModulesFile: magic} {
		if err := os.WriteFile(filepath.Join(kern, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := atomicfile.WriteJSON(filepath.Join(kern, kernel.ManifestFile), kernel.Manifest{Layout: kernel.Layout, Name: "custom", Version: "6", Arch: "amd64"}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "dev.tar.zst")
	_, err := bundle.Write(t.Context(), path, bundle.Contents{
		Manifest: bundle.Manifest{Name: "dev", Arch: "amd64", Kernel: "custom", Config: source.Config{User: "me"}}, Rootfs: bytes.NewReader(tree(t)), KernelDir: kern,
	})
	if err == nil {
		_, err = signature.SignFile(t.Context(), path, k)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A bundle from a plain web server becomes an image, with its kernel.
func TestPullBundle(t *testing.T) {
	k := newKey(t)
	dir, url, _ := web(t)
	path := aBundle(t, dir, k)
	staging := t.TempDir()
	sources, err := Sources(SourceOptions{Blobs: blob.Open(t.TempDir()), Keys: []string{k.Public().String()}})
	if err != nil {
		t.Fatal(err)
	}
	entry, err := Resolve(url + "/dev.tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	staged, m, err := Pull(t.Context(), entry, PullOptions{Staging: staging, Arch: "amd64", Sources: sources})
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "dev" || m.Source != "bundle:"+url+"/dev.tar.zst" || m.Config.User != "me" || !strings.HasPrefix(m.Kernel, "custom-") || m.Digest == "" || m.Entries == 0 {
		t.Errorf("%+v", m)
	}
	kern, ok := StagedKernel(staged)
	km, err := kernel.Load(kern)
	if !ok || err != nil || km.Name != m.Kernel {
		t.Errorf("%+v, %v, %v", km, ok, err)
	}
	if files, _ := os.ReadDir(staged); len(files) != 3 {
		t.Errorf("staged: %v", files)
	}
	// The same image from a file has the same digest, and without a key nothing comes over the network.
	local, err := Resolve("bundle:" + path)
	if err != nil {
		t.Fatal(err)
	}
	_, again, err := Pull(t.Context(), local, PullOptions{Staging: staging, Arch: "amd64", Sources: sources})
	if err != nil || again.Digest != m.Digest {
		t.Errorf("%s and %s, %v", again.Digest, m.Digest, err)
	}
	sources[KindBundle] = bundle.Source{}
	elsewhere := t.TempDir()
	if _, _, err := Pull(t.Context(), entry, PullOptions{Staging: elsewhere, Arch: "amd64", Sources: sources}); !fault.Is(err, fault.Denied) {
		t.Error(err)
	}
	if _, _, err := Pull(t.Context(), entry, PullOptions{Staging: elsewhere, Arch: "amd64", Sources: sources, Keys: []string{k.Public().String()}}); err != nil {
		t.Error(err)
	}
	if err := RemoveStaged(t.Context(), staged); err != nil {
		t.Error(err)
	}
}

// An entry of a catalog carries the digest of its bundle.
func TestPullHoldsTheCatalogsDigest(t *testing.T) {
	dir, url, _ := web(t)
	aBundle(t, dir, newKey(t))
	sources := map[string]source.Source{KindBundle: bundle.Source{}}
	e := Entry{Name: "dev", Sources: []Origin{{Kind: KindBundle, Location: url + "/dev.tar.zst", SHA256: strings.Repeat("0", 64)}}}
	staging := t.TempDir()
	if _, _, err := Pull(t.Context(), e, PullOptions{Staging: staging, Arch: "amd64", Sources: sources}); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "and not 0000") {
		t.Error(err)
	}
	if left, _ := os.ReadDir(staging); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// What a pull leaves that was killed while it downloaded or unpacked is removed by RemoveStaged.
func TestRemoveStagedAfterAnInterruptedBundle(t *testing.T) {
	staging := t.TempDir()
	dir := filepath.Join(staging, "image-1")
	stalls := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte("x"))
		_ = http.NewResponseController(w).Flush()
		close(stalls)
		<-r.Context().Done()
	}))
	defer server.Close()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = bundle.Source{}.Fetch(ctx, source.Request{Location: server.URL + "/b.tar.zst", SHA256: strings.Repeat("0", 64), Arch: "amd64", Staging: dir})
	}()
	<-stalls
	if err := os.CopyFS(filepath.Join(staging, "image-2"), os.DirFS(dir)); err != nil { // as it is in the middle
		t.Fatal(err)
	}
	cancel()
	<-ended
	for _, name := range []string{"image-2", "image-2"} {
		if err := RemoveStaged(t.Context(), filepath.Join(staging, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(staging, "image-2")); !os.IsNotExist(err) {
		t.Errorf("it is left: %v", err)
	}
}

func TestFromLayers(t *testing.T) {
	layers := []source.Layer{{Digest: "sha256:a"}, {Digest: "sha256:b"}}
	build := func(c source.Config, l []source.Layer) (Manifest, error) {
		dir, m, err := FromLayers(t.Context(), t.TempDir(), Manifest{Name: "built", Arch: "amd64", Kernel: "k", Source: "build"}, source.Tree{
			Tar: io.NopCloser(bytes.NewReader(tree(t))), Config: c, Layers: l,
		})
		if err != nil {
			return m, err
		}
		loaded, err := Load(dir)
		if diff := cmp.Diff(m, loaded); diff != "" {
			t.Error(diff)
		}
		return m, err
	}
	m, err := build(source.Config{User: "a"}, layers)
	if err != nil || m.Digest != Identity(source.Config{User: "a"}, "amd64", layers) || len(m.Layers) != 2 || m.Entries == 0 || m.Kernel != "k" {
		t.Errorf("%+v, %v", m, err)
	}
	if same, err := build(source.Config{User: "a"}, layers); err != nil || same.Digest != m.Digest {
		t.Errorf("%s is not %s, %v", same.Digest, m.Digest, err)
	}
	if other, err := build(source.Config{User: "b"}, layers); err != nil || other.Digest == m.Digest {
		t.Errorf("another configuration, the same digest; %v", err)
	}
	if other, err := build(source.Config{User: "a"}, layers[:1]); err != nil || other.Digest == m.Digest {
		t.Errorf("other layers, the same digest; %v", err)
	}
	if _, err := build(source.Config{}, nil); err == nil {
		t.Error("an image without layers")
	}
}

func TestTooManyEntries(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, name := range []string{"a/", "b/", "c/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	staging := t.TempDir()
	if _, _, err := FromTree(t.Context(), staging, Manifest{Name: "x"}, source.Tree{Tar: io.NopCloser(&b), Entries: 2}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "more than 2 entries") {
		t.Error(err)
	}
	if left, _ := os.ReadDir(staging); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestFromTreeFailuresLeaveNothing(t *testing.T) {
	staging := t.TempDir()
	if _, _, err := FromTree(t.Context(), staging, Manifest{Name: "x"}, source.Tree{Tar: io.NopCloser(bytes.NewReader(tree(t)[:700]))}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(staging); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, _, err := FromTree(t.Context(), filepath.Join(staging, "none"), Manifest{}, source.Tree{Tar: io.NopCloser(strings.NewReader(""))}); err == nil {
		t.Error("no staging directory, no error")
	}
}

func TestSourcesRefusesABadKey(t *testing.T) {
	if _, err := Sources(SourceOptions{Keys: []string{"x"}}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	all, err := Sources(SourceOptions{Blobs: blob.Open(t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{KindDebian, KindRegistry, KindLayout, KindLayoutArchive, KindDockerArchive, KindBundle} {
		if all[kind] == nil {
			t.Errorf("no source of kind %s", kind)
		}
	}
}
