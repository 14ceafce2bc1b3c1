package test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// badPull is something that cannot be pulled.
type badPull struct {
	repo   string
	layers []v1.Layer // nil: a good one
	arch   string
	bad    func(w http.ResponseWriter, r *http.Request, good http.Handler)
	code   int
	said   string // of the image, with HOST, DIGEST and N for what differs from run to run
	hint   string
}

// What is wrong with an image or its registry is said, with a hint where there is something to be done, and leaves
// nothing behind.
func TestImagePullRefused(t *testing.T) {
	home, vars := emptyHome(t)
	writeConfig(t, home, "[limits]\nimage_size = \"64M\"\nimage_entries = 1000\n")
	s := newStand(t)
	good := layerOf(t, fileOf("good", 100_000))
	ref := s.put("good", runtime.GOARCH, good)
	answers(t, vars, ref+"\n", "image", "pull", ref)
	before := listImages(t, vars)

	for _, b := range badImages(t) {
		t.Run(b.repo, func(t *testing.T) {
			b.check(t, s, vars, good)
			undisturbed(t, home, vars, before)
		})
	}
	// These are given some time to do better. They do not keep each other waiting, nor anything else.
	t.Run("slow", func(t *testing.T) {
		for _, b := range badRegistries() {
			t.Run(b.repo, func(t *testing.T) {
				t.Parallel()
				b.check(t, s, vars, good)
			})
		}
		t.Run("meanwhile", func(t *testing.T) {
			t.Parallel()
			ref := s.put("meanwhile", runtime.GOARCH, good)
			answers(t, vars, ref+"\n", "image", "pull", ref)
			must(t, vars, "image", "rm", ref)
		})
	})
	undisturbed(t, home, vars, before)
}

var (
	digestForm = regexp.MustCompile(`[0-9a-f]{12,64}`)
	sizeForm   = regexp.MustCompile(`(its|has|says) \d+`)
	stageForm  = regexp.MustCompile(`(?m)^banger: image: .*\n`) // how far a pull is that takes its time
	entryForm  = regexp.MustCompile(`entry "[^"]*": `)          // whether a limit is noticed at an entry or between two is chance
)

// plainly is a message without what differs from run to run.
func (s *stand) plainly(message string) string {
	message = digestForm.ReplaceAllString(strings.ReplaceAll(message, s.host, "HOST"), "DIGEST")
	message = stageForm.ReplaceAllString(message, "")
	return entryForm.ReplaceAllString(sizeForm.ReplaceAllString(message, "$1 N"), "")
}

func (b badPull) check(t *testing.T, s *stand, vars []string, good v1.Layer) {
	t.Helper()
	if b.layers == nil {
		b.layers = []v1.Layer{good, layerOf(t, fileOf(b.repo, 300_000))}
	}
	if b.arch == "" {
		b.arch = runtime.GOARCH
	}
	ref := s.put(b.repo, b.arch, b.layers...)
	s.misbehave(b.repo, b.bad)
	got := runBanger(t, vars, "image", "pull", ref)
	want := "banger: error: image HOST/" + b.repo + ":1: " + b.said + "\n"
	if b.hint != "" {
		want += "banger: hint: " + b.hint + "\n"
	}
	if got.code != b.code || got.stdout != "" {
		t.Errorf("exit code %d and %q, want %d", got.code, got.stdout, b.code)
	}
	if diff := cmp.Diff(want, s.plainly(got.stderr)); diff != "" {
		t.Errorf("-want +said:\n%s", diff)
	}
}

// badImages are wrong in themselves, or damaged on their way.
func badImages(t *testing.T) []badPull {
	many := make([]*tar.Header, 1100)
	for i := range many {
		many[i] = fileOf(fmt.Sprint(i), 0)
	}
	const damaged = "make rootfs.ext4: layer 2 of 2: "
	return []badPull{
		{
			repo: "damaged", bad: blobs(func(data []byte) []byte { data[len(data)/2] ^= 1; return data }),
			code: 240, said: damaged + "sha256:DIGEST is damaged: its N bytes have the digest sha256:DIGEST",
		},
		{
			repo: "smaller", bad: blobs(func(data []byte) []byte { return data[:len(data)/2] }),
			code: 240, said: damaged + "blob sha256:DIGEST has N bytes at the registry, and its manifest says N",
		},
		{
			repo: "longer", bad: blobs(func(data []byte) []byte { return append(data, 0) }),
			code: 240, said: damaged + "blob sha256:DIGEST has N bytes at the registry, and its manifest says N",
		},
		{
			repo: "bomb", layers: []v1.Layer{layerOf(t, fileOf("zeros", 200<<20))},
			code: 245, said: "make rootfs.ext4: layer 1 (sha256:DIGEST): the layers hold more than 64M, uncompressed",
			hint: "banger config set limits.image_size 1G",
		},
		{
			repo: "crowd", layers: []v1.Layer{layerOf(t, many...)},
			code: 245, said: "make rootfs.ext4: layer 1 (sha256:DIGEST): the layers have more than 1000 entries",
			hint: "banger config set limits.image_entries 2000",
		},
		{
			repo: "cut-tar", layers: []v1.Layer{static.NewLayer(make([]byte, 700), "application/vnd.oci.image.layer.v1.tar")},
			code: 240, said: "make rootfs.ext4: layer 1 (sha256:DIGEST): its tar stream is cut off",
		},
		{
			repo: "no-tar", layers: []v1.Layer{static.NewLayer([]byte("<html>not here</html>"), types.OCILayer)},
			code: 240, said: "make rootfs.ext4: layer 1 (sha256:DIGEST): it is not gzip data, as its media type says",
		},
		{
			repo: "media-type", layers: []v1.Layer{static.NewLayer([]byte("{}"), "application/vnd.example.model")},
			code: 240, said: `layer 1 of 1 (sha256:DIGEST) has the unknown media type "application/vnd.example.model"`,
		},
		{
			repo: "schema-1", bad: manifest1,
			code: 240, said: "the manifest is of docker's schema 1, which nothing can verify: the image has to be pushed anew",
		},
		{
			repo: "architecture", arch: "s390x",
			code: 240, said: "the image is for linux/s390x, and linux/" + runtime.GOARCH + " is needed", hint: "banger image catalog",
		},
		{
			repo: "status-401", bad: status(http.StatusUnauthorized, ""),
			code: 246, said: "registry HOST wants a login for status-401; some also say so of what they do not have", hint: "docker login HOST",
		},
		{
			repo: "status-403", bad: status(http.StatusForbidden, `{"errors":[{"code":"DENIED","message":"not for you"}]}`),
			code: 246, said: `registry HOST forbids access to status-403: it says "not for you"`, hint: "docker login HOST",
		},
		{
			repo: "status-404", bad: status(http.StatusNotFound, `{"errors":[{"code":"NAME_UNKNOWN"}]}`),
			code: 241, said: "registry HOST has no repository status-404", hint: "banger image catalog",
		},
	}
}

// badRegistries are such as may be better soon.
func badRegistries() []badPull {
	return []badPull{
		{
			repo: "status-429", bad: status(http.StatusTooManyRequests, ""),
			code: 244, said: "registry HOST gets too many requests from here (429)", hint: "docker login HOST",
		},
		{
			repo: "status-503", bad: status(http.StatusServiceUnavailable, ""),
			code: 244, said: "registry HOST is out of order: 503 Service Unavailable", hint: "curl -v http://HOST/v2/",
		},
		{
			repo: "cut", bad: blobs(func([]byte) []byte { panic(http.ErrAbortHandler) }),
			code: 244, said: "make rootfs.ext4: layer 2 of 2: registry HOST has cut the connection several times",
		},
		{
			repo: "stall", bad: func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() },
			code: 244, said: "registry HOST has stalled: nothing has come from it for 30s", hint: "curl -v http://HOST/v2/",
		},
	}
}

// blobs changes every blob that a registry sends but for the configuration.
func blobs(change func([]byte) []byte) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, good http.Handler) {
		got := httptest.NewRecorder()
		r.Header.Del("Range")
		good.ServeHTTP(got, r)
		data := got.Body.Bytes()
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && !bytes.HasPrefix(data, []byte("{")) {
			data = change(bytes.Clone(data))
		}
		for key, values := range got.Header() {
			if key != "Content-Length" {
				w.Header()[key] = values
			}
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.WriteHeader(got.Code)
		_, _ = w.Write(data)
	}
}

func status(code int, body string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// manifest1 answers with a manifest of the first schema.
func manifest1(w http.ResponseWriter, r *http.Request, good http.Handler) {
	if !strings.Contains(r.URL.Path, "/manifests/") {
		good.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
	_, _ = io.WriteString(w, `{"schemaVersion":1,"name":"schema-1","tag":"1","fsLayers":[{"blobSum":"sha256:`+strings.Repeat("0", 64)+`"}]}`)
}
