package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// testRegistry is a real registry whose answers can be spoiled.
type testRegistry struct {
	*httptest.Server
	host string

	mu     sync.Mutex
	gets   map[string]int // GETs by the last part of the path
	spoil  func(w http.ResponseWriter, r *http.Request, next http.Handler) bool
	within int // blob GETs under way
	most   int // and the most there ever were
}

func newTestRegistry(t *testing.T) *testRegistry {
	t.Helper()
	reg := &testRegistry{gets: map[string]int{}}
	reg.Server = httptest.NewServer(reg.handler())
	reg.host = strings.TrimPrefix(reg.URL, "http://")
	t.Cleanup(reg.Close)
	return reg
}

// handler is the registry with everything that tests do to it in front.
func (reg *testRegistry) handler() http.Handler {
	inner := registry.New(registry.Logger(nolog()))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		spoil := reg.spoil
		isBlob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
		if r.Method == http.MethodGet {
			reg.gets[path.Base(r.URL.Path)]++
		}
		if isBlob {
			reg.within++
			reg.most = max(reg.most, reg.within)
		}
		reg.mu.Unlock()
		if spoil == nil || !spoil(w, r, inner) {
			inner.ServeHTTP(w, r)
		}
		if isBlob {
			reg.mu.Lock()
			reg.within--
			reg.mu.Unlock()
		}
	})
}

// whenGetting spoils the GETs whose path has a part.
func (reg *testRegistry) whenGetting(part string, do func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.spoil = func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, part) {
			return false
		}
		do(w, r, next)
		return true
	}
}

func (reg *testRegistry) count(name string) int {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return reg.gets[name]
}

// put stores a blob or a manifest as it is.
func (reg *testRegistry) put(t *testing.T, method, url, mediaType string, data []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, reg.URL+url, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := reg.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s %s", method, url, resp.Status, text)
	}
}

func (reg *testRegistry) putBlob(t *testing.T, repo string, data []byte) string {
	t.Helper()
	digest := digestOf(data)
	reg.put(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest, "application/octet-stream", data)
	return digest
}

// object is a JSON object.
type object = map[string]any

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Media types for manifests in tests.
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	gzipType     = "application/vnd.oci.image.layer.v1.tar+gzip"
	plainType    = "application/vnd.oci.image.layer.v1.tar"
)

func defaultConfig() object {
	return object{"architecture": "amd64", "os": "linux", "config": object{"Env": []string{"A=1"}, "Cmd": []string{"/bin/sh"}}}
}

// describeBlob is a descriptor.
func describeBlob(mediaType string, data []byte) object {
	return object{"mediaType": mediaType, "digest": digestOf(data), "size": len(data)}
}

// imageManifest is the manifest of an image of gzip layers.
func imageManifest(t *testing.T, config object, layers ...[]byte) []byte {
	t.Helper()
	list := []object{}
	for _, l := range layers {
		list = append(list, describeBlob(gzipType, l))
	}
	return encode(t, object{"schemaVersion": 2, "mediaType": manifestType, "config": describeBlob(configType, encode(t, config)), "layers": list})
}

// putImage stores an image and returns its manifest's digest.
func (reg *testRegistry) putImage(t *testing.T, repo, tag string, config object, layers ...[]byte) string {
	t.Helper()
	for _, l := range layers {
		reg.putBlob(t, repo, l)
	}
	reg.putBlob(t, repo, encode(t, config))
	m := imageManifest(t, config, layers...)
	reg.put(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, manifestType, m)
	return digestOf(m)
}

// tarOf makes a layer of files.
func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i+1 < len(files); i += 2 {
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), ModTime: time.Unix(1e9, 0)}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func layerOf(t *testing.T, files ...string) []byte {
	t.Helper()
	return gzipped(t, tarOf(t, files...))
}

// noise is content that does not compress.
func noise(seed byte, n int) string {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(data)
	return string(data)
}

func testOptions(t *testing.T) Options {
	t.Helper()
	return Options{
		Blobs: blob.Open(filepath.Join(t.TempDir(), "blobs")), Keychain: noKeychain{}, Stall: time.Minute,
		Backoff: []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond},
	}
}

type noKeychain struct{}

func (noKeychain) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// recorder keeps every progress report.
type recorder struct {
	mu  sync.Mutex
	all []progress.Update
}

func (r *recorder) report(u progress.Update) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, u)
}

func (r *recorder) last() progress.Update {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[len(r.all)-1]
}

// messages are the different ones, in order.
func (r *recorder) messages() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.all {
		if !slices.Contains(out, u.Message) {
			out = append(out, u.Message)
		}
	}
	return out
}

// result is what came of a whole pull.
type result struct {
	tree     source.Tree
	files    map[string]string // contents of regular files; "->x" for links
	progress *recorder
}

// fetchAll pulls an image and reads its stream. Whatever comes of it, nothing is left in the staging directory.
func fetchAll(t *testing.T, ctx context.Context, src source.Source, location string) (result, error) {
	t.Helper()
	staging := t.TempDir()
	out := result{progress: &recorder{}, files: map[string]string{}}
	defer func() {
		if err := src.Remove(context.Background(), staging); err != nil {
			t.Errorf("remove: %v", err)
		}
		if left, err := os.ReadDir(staging); err != nil || len(left) > 0 {
			t.Errorf("left in the staging directory: %v, %v", left, err)
		}
	}()
	var err error
	out.tree, err = src.Fetch(ctx, source.Request{Location: location, Arch: "amd64", Staging: staging, Progress: out.progress.report})
	if err != nil {
		return out, err
	}
	err = out.read()
	if closeErr := out.tree.Tar.Close(); closeErr != nil {
		t.Errorf("close: %v", closeErr)
	}
	if left, readErr := os.ReadDir(staging); readErr != nil || len(left) > 0 {
		t.Errorf("left in the staging directory by Close: %v, %v", left, readErr)
	}
	return out, err
}

func (r *result) read() error {
	data, err := io.ReadAll(&again{Reader: r.tree.Tar})
	if err != nil {
		return err
	}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			return err
		}
		switch hdr.Typeflag {
		case tar.TypeReg:
			r.files[path.Clean(hdr.Name)] = string(content)
		case tar.TypeLink, tar.TypeSymlink:
			r.files[path.Clean(hdr.Name)] = "->" + hdr.Linkname
		}
	}
}

// again refuses a stream that begins anew, which these small images never make it do.
type again struct{ io.Reader }

func (a *again) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	if errors.Is(err, ext4.ErrAnew) {
		err = errors.New("the stream begins anew")
	}
	return n, err
}

// wantFault checks class and words of an error.
func wantFault(t *testing.T, err error, class fault.Class, words ...string) {
	t.Helper()
	if !fault.Is(err, class) {
		t.Errorf("class %s of %v, want %s", fault.ClassOf(err), err, class)
	}
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error is\n  %v\nwithout %q", err, w)
		}
	}
}

// blobsOf lists what is in a store, partial files included.
func blobsOf(t *testing.T, s *blob.Store) []string {
	t.Helper()
	out := []string{}
	err := filepath.WalkDir(s.Dir(), func(name string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(s.Dir(), name)
			out = append(out, rel)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return out
}

// noLeaks checks at the end of a test that no goroutine of it is left.
func noLeaks(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; runtime.Gosched() {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
			}
		}
	})
}

func ref(reg *testRegistry, name string) string { return fmt.Sprintf("%s/%s", reg.host, name) }
