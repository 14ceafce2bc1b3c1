package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/image/source"
)

// storedImage puts layers into a store and returns an image of them.
func storedImage(t *testing.T, opt Options, layers ...[]byte) Image {
	t.Helper()
	img := Image{Arch: "amd64", Created: time.Date(2024, 5, 6, 7, 8, 9, 10, time.UTC), History: []string{"RUN one"}, Config: source.Config{
		User: "1000", Workdir: "/src", Env: []string{"A=1"}, Entrypoint: []string{"/e"}, Cmd: []string{"c"}, ExposedPorts: []string{"80/tcp"},
		Labels: map[string]string{"k": "v"}, StopSignal: "SIGINT", RunShell: []string{"/bin/sh", "-c"}, OnBuild: []string{"RUN x"},
	}}
	for _, data := range layers {
		w, err := opt.Blobs.Create()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		digest, size, err := w.Commit()
		if err != nil {
			t.Fatal(err)
		}
		mediaType := "application/vnd.docker.image.rootfs.diff.tar.gzip"
		if !isCompressed(data) {
			mediaType = plainType
		}
		img.Layers = append(img.Layers, source.Layer{MediaType: mediaType, Digest: digest, Size: size})
	}
	return img
}

// What is written is read as the same, in every form; and written twice it is the same bytes.
func TestWriteAndReadBack(t *testing.T) {
	opt := testOptions(t)
	packed, plain := layerOf(t, "a", "lower", "b", "kept"), tarOf(t, "a", "upper")
	img := storedImage(t, opt, packed, plain, packed)
	dir := t.TempDir()
	if err := WriteLayout(t.Context(), opt.Blobs, filepath.Join(dir, "layout"), img, WriteOptions{Tag: "1.2"}); err != nil {
		t.Fatal(err)
	}
	var archives [2]bytes.Buffer
	rec := &recorder{}
	for i := range archives {
		if err := WriteArchive(t.Context(), opt.Blobs, &archives[i], img, WriteOptions{Tag: "1.2", Progress: rec.report}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0].Bytes(), archives[1].Bytes()) {
		t.Error("the same image is not the same archive")
	}
	if last := rec.last(); last.Done != last.Total || last.Total != uint64(len(packed)+len(plain)) || last.Message != "writing 2 layers" {
		t.Errorf("last report: %+v", last)
	}
	writeFiles(t, dir, "layout.tar", archives[0].String())
	reg := newTestRegistry(t)
	pushed, err := NewRegistry(opt).Push(t.Context(), ref(reg, "dev/box:1.2"), img, WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var digests []string
	for location, src := range map[string]source.Source{
		filepath.Join(dir, "layout:1.2"): NewLayout(testOptions(t)), filepath.Join(dir, "layout.tar"): NewLayout(testOptions(t)),
		ref(reg, "dev/box:1.2"): NewRegistry(testOptions(t)),
	} {
		got, err := fetchAll(t, t.Context(), src, location)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{"a": "lower", "b": "kept"}, got.files); diff != "" {
			t.Errorf("%s (-want +got):\n%s", location, diff)
		}
		if diff := cmp.Diff(img.Config, got.tree.Config); diff != "" {
			t.Errorf("%s: config (-want +got):\n%s", location, diff)
		}
		if got.tree.Upstream != pushed || got.tree.Layers[0].MediaType != gzipType || got.tree.Layers[1].MediaType != plainType {
			t.Errorf("%s: %+v", location, got.tree)
		}
		digests = append(digests, got.tree.Digest)
	}
	if digests[0] != digests[1] || digests[1] != digests[2] {
		t.Errorf("digests %q", digests)
	}
	w, err := assemble(t.Context(), opt.Blobs, img)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf(`"diff_ids":["%s","%s","%s"]`, digestOf(tarOf(t, "a", "lower", "b", "kept")), digestOf(plain), digestOf(tarOf(t, "a", "lower", "b", "kept"))),
		`"created":"2024-05-06T07:08:09Z"`, `"created_by":"RUN one"`, `"created_by":"banger"`, `"architecture":"amd64"`,
	} {
		if !bytes.Contains(w.config, []byte(want)) {
			t.Errorf("no %s in\n%s", want, w.config)
		}
	}
}

func TestLoginShellBecomesTheCommand(t *testing.T) {
	if got := configOf(source.Config{Shell: "/bin/bash"}).Cmd; !cmp.Equal(got, []string{"/bin/bash"}) {
		t.Errorf("%q", got)
	}
	if got := configOf(source.Config{Shell: "/bin/bash", Entrypoint: []string{"x"}}).Cmd; got != nil {
		t.Errorf("%q", got)
	}
}

func TestLayoutIsWrittenWholeOrNotAtAll(t *testing.T) {
	opt := testOptions(t)
	img := storedImage(t, opt, layerOf(t, "a", "b"))
	gone := img
	gone.Layers = append(gone.Layers, source.Layer{Digest: zeroes, Size: 1, MediaType: gzipType})
	longer := img
	longer.Layers = []source.Layer{{Digest: img.Layers[0].Digest, Size: 1, MediaType: gzipType}}
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	writeFiles(t, full, "x", "y")
	for name, tc := range map[string]struct {
		dst   string
		img   Image
		class fault.Class
		words string
	}{
		"not empty":      {full, img, fault.Exists, full + " is there already"},
		"a file":         {filepath.Join(full, "x"), img, fault.Exists, "is there already"},
		"no parent":      {filepath.Join(dir, "no", "where"), img, fault.NotFound, "no such file"},
		"layer is gone":  {filepath.Join(dir, "new"), gone, fault.NotFound, "layer 2 of 2: blob " + zeroes + " is no longer in the store"},
		"layer is other": {filepath.Join(dir, "new"), longer, fault.Invalid, "and its image says 1"},
	} {
		err := WriteLayout(t.Context(), opt.Blobs, tc.dst, tc.img, WriteOptions{})
		wantFault(t, err, tc.class, tc.words)
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	// A layer that is damaged in the store is not passed on.
	if err := os.WriteFile(filepath.Join(opt.Blobs.Dir(), "sha256", img.Layers[0].Digest[7:]), make([]byte, img.Layers[0].Size), 0o600); err != nil {
		t.Fatal(err)
	}
	img.Layers[0].DiffID = zeroes
	wantFault(t, WriteLayout(t.Context(), opt.Blobs, filepath.Join(dir, "new"), img, WriteOptions{}), fault.Invalid, "is damaged")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteLayout(t.Context(), opt.Blobs, empty, storedImage(t, opt, layerOf(t, "a", "b")), WriteOptions{}); err != nil {
		t.Errorf("into an empty directory: %v", err)
	}
}

// uploads counts the PUTs of blobs, and the answers to requests for mounting.
func (reg *testRegistry) uploads(also func(w http.ResponseWriter, r *http.Request) bool) (puts *int) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	puts = new(int)
	reg.spoil = func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/") {
			reg.mu.Lock()
			*puts++
			reg.mu.Unlock()
		}
		return also != nil && also(w, r)
	}
	return puts
}

func TestPushUploadsWhatIsMissing(t *testing.T) {
	reg := newTestRegistry(t)
	opt := testOptions(t)
	img := storedImage(t, opt, tarOf(t, "a", noise(1, 300_000)), tarOf(t, "b", noise(2, 300_000)))
	src := NewRegistry(opt)
	puts := reg.uploads(nil)
	rec := &recorder{}
	if _, err := src.Push(t.Context(), ref(reg, "dev/box"), img, WriteOptions{Progress: rec.report}); err != nil || *puts != 3 {
		t.Fatalf("%d uploads, %v", *puts, err)
	}
	last := rec.last()
	if last.Message != "uploading 2 layers" || last.Done != last.Total || last.Total != uint64(img.Layers[0].Size+img.Layers[1].Size) {
		t.Errorf("last report: %+v", last)
	}
	more := storedImage(t, opt, layerOf(t, "c", "new"))
	more.Layers = append(img.Layers, more.Layers...)
	puts = reg.uploads(nil)
	if _, err := src.Push(t.Context(), ref(reg, "dev/box:2"), more, WriteOptions{}); err != nil || *puts != 2 { // the layer and the configuration
		t.Errorf("%d uploads, %v", *puts, err)
	}
	mounts := 0
	puts = reg.uploads(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/other/box/") {
			w.WriteHeader(http.StatusNotFound) // this registry has one pot of blobs for all repositories; others do not
			return true
		}
		if r.Method != http.MethodPost || r.URL.Query().Get("mount") == "" || r.URL.Query().Get("from") != "dev/box" {
			return false
		}
		reg.mu.Lock()
		mounts++
		reg.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
		return true
	})
	from := WriteOptions{From: []string{"elsewhere.example/x", ref(reg, "dev/box:2"), "no reference"}}
	if _, err := src.Push(t.Context(), ref(reg, "other/box"), more, from); err != nil || *puts != 1 || mounts != 3 {
		t.Errorf("%d uploads, %d mounts, %v", *puts, mounts, err)
	}
}

func TestPushFailures(t *testing.T) {
	refuse := func(method, part string, code int) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != method || !strings.Contains(r.URL.Path, part) {
				return false
			}
			w.WriteHeader(code)
			return true
		}
	}
	release := make(chan struct{}) // a server does not hear of a client's end before it has read the body
	for name, tc := range map[string]struct {
		do    func(w http.ResponseWriter, r *http.Request) bool
		class fault.Class
		words string
	}{
		"401 at the beginning": {refuse("POST", "/uploads/", 401), fault.Denied, "wants a login for dev/box"},
		"403 at the beginning": {refuse("POST", "/uploads/", 403), fault.Denied, "forbids access to dev/box"},
		"no room":              {refuse("PUT", "/uploads/", 507), fault.Unavailable, "out of order: 507 Insufficient Storage"},
		"manifest refused":     {refuse("PUT", "/manifests/", 400), fault.Unavailable, "answers 400 Bad Request about dev/box:latest"},
		"no place":             {refuse("POST", "/uploads/", 202), fault.Unavailable, "names no usable place to upload to"},
		"stalls": {func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				<-release
			}
			return r.Method == http.MethodPut
		}, fault.Unavailable, "has stalled"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newTestRegistry(t)
			opt := impatient(testOptions(t), name, 300*time.Millisecond)
			img := storedImage(t, opt, tarOf(t, "a", noise(1, 5_000_000)))
			reg.uploads(tc.do)
			noLeaks(t)
			src := NewRegistry(opt)
			defer src.http.CloseIdleConnections()
			_, err := src.Push(t.Context(), ref(reg, "dev/box"), img, WriteOptions{})
			wantFault(t, err, tc.class, tc.words, reg.host+"/dev/box:latest: ")
			if name == "stalls" {
				close(release)
			}
		})
	}
	for _, location := range []string{"a@" + zeroes, "A"} {
		_, err := NewRegistry(testOptions(t)).Push(t.Context(), location, Image{}, WriteOptions{})
		wantFault(t, err, fault.Invalid, "")
	}
}

// An upload that is cut begins anew.
func TestPushTriesAgain(t *testing.T) {
	reg := newTestRegistry(t)
	opt := testOptions(t)
	img := storedImage(t, opt, tarOf(t, "a", noise(1, 500_000)))
	failures := 0
	reg.uploads(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || failures == 3 {
			return false
		}
		failures++
		switch failures {
		case 1:
			_, _ = io.CopyN(io.Discard, r.Body, 1000)
			panic(http.ErrAbortHandler)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}
		return true
	})
	if _, err := NewRegistry(opt).Push(t.Context(), ref(reg, "dev/box"), img, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(reg, "dev/box")); err != nil {
		t.Error(err)
	}
}

func TestPushEndsWithTheContext(t *testing.T) {
	reg := newTestRegistry(t)
	opt := testOptions(t)
	img := storedImage(t, opt, tarOf(t, "a", noise(1, 500_000)))
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	release := make(chan struct{})
	reg.uploads(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			cancel(gaveUp)
			<-release
		}
		return r.Method == http.MethodPut
	})
	noLeaks(t)
	src := NewRegistry(opt)
	if _, err := src.Push(ctx, ref(reg, "dev/box"), img, WriteOptions{}); !errors.Is(err, gaveUp) {
		t.Error(err)
	}
	close(release)
	src.http.CloseIdleConnections()
}
