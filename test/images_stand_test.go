package test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// stand is a registry that can be made to misbehave, and that counts what it is asked for.
type stand struct {
	t    *testing.T
	host string // localhost:PORT
	good http.Handler

	mu    sync.Mutex // guards the fields below
	bad   map[string]func(w http.ResponseWriter, r *http.Request, good http.Handler)
	asked map[string]int // GETs by path
	rests int            // GETs of a part
}

func newStand(t *testing.T) *stand {
	s := &stand{
		t: t, good: registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		bad: map[string]func(http.ResponseWriter, *http.Request, http.Handler){}, asked: map[string]int{},
	}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.CloseClientConnections() // of handlers that never answer
		server.Close()
	})
	s.host = strings.Replace(server.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
	return s
}

// ServeHTTP implements http.Handler.
func (s *stand) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var bad func(http.ResponseWriter, *http.Request, http.Handler)
	s.mu.Lock()
	for repo, f := range s.bad {
		if strings.HasPrefix(r.URL.Path, "/v2/"+repo+"/") {
			bad = f
		}
	}
	if r.Method == http.MethodGet {
		s.asked[r.URL.Path]++
		if r.Header.Get("Range") != "" {
			s.rests++
		}
	}
	s.mu.Unlock()
	if bad != nil {
		bad(w, r, s.good)
		return
	}
	s.good.ServeHTTP(w, r)
}

// misbehave lets f answer what concerns a repository; nil: it behaves again.
func (s *stand) misbehave(repo string, f func(w http.ResponseWriter, r *http.Request, good http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad[repo] = f
}

// restsAsked counts the requests for what was missing of something.
func (s *stand) restsAsked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rests
}

// blobsAsked counts the requests for blobs of a repository, each blob by itself.
func (s *stand) blobsAsked(repo string) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]int{}
	for path, n := range s.asked {
		if digest, ok := strings.CutPrefix(path, "/v2/"+repo+"/blobs/"); ok {
			all[digest] += n
		}
	}
	return all
}

// put puts an image for this machine into the registry, and returns the reference that banger is to pull.
func (s *stand) put(repo, arch string, layers ...v1.Layer) string {
	s.t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: arch, OS: "linux", Config: v1.Config{Cmd: []string{"/bin/sh"}, Labels: map[string]string{"repo": repo}},
	})
	if err == nil {
		img, err = mutate.AppendLayers(mutate.MediaType(img, types.OCIManifestSchema1), layers...)
	}
	var ref name.Reference
	if err == nil {
		ref, err = name.ParseReference(s.host + "/" + repo + ":1")
	}
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return ref.String()
}

// layerOf is a compressed layer of some entries.
func layerOf(t *testing.T, entries ...*tar.Header) v1.Layer {
	t.Helper()
	var data bytes.Buffer
	z := gzip.NewWriter(&data)
	w := tar.NewWriter(z)
	for _, h := range entries {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, contents(h.Name), h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return static.NewLayer(data.Bytes(), types.OCILayer)
}

// contents are those of files called zeros and text (every byte is the same), or noise that follows from the name.
func contents(name string) io.Reader {
	switch name {
	case "zeros":
		return repeated(0)
	case "text":
		return repeated('x')
	}
	return rand.NewChaCha8(sha256.Sum256([]byte(name)))
}

type repeated byte

func (r repeated) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r)
	}
	return len(p), nil
}

// fileOf is a regular file.
func fileOf(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
}
