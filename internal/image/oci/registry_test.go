package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
)

func nolog() *log.Logger { return log.New(io.Discard, "", 0) }

func TestPull(t *testing.T) {
	reg := newTestRegistry(t)
	lower, upper := layerOf(t, "etc/a", "lower", "etc/b", "kept"), layerOf(t, "etc/a", "upper", "etc/.wh.gone", "")
	upstream := reg.putImage(t, "dev/box", "1.2", defaultConfig(), lower, upper)
	noLeaks(t)
	opt := testOptions(t)
	src := NewRegistry(opt)
	defer src.http.CloseIdleConnections()

	got, err := fetchAll(t, t.Context(), src, ref(reg, "dev/box:1.2"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"etc/a": "upper", "etc/b": "kept"}, got.files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	layers := []source.Layer{
		{MediaType: gzipType, Digest: digestOf(lower), Size: int64(len(lower))}, {MediaType: gzipType, Digest: digestOf(upper), Size: int64(len(upper))},
	}
	want := source.Tree{
		Origin: reg.host + "/dev/box:1.2", Arch: "amd64", Upstream: upstream, Layers: layers,
		Config: source.Config{Env: []string{"A=1"}, Cmd: []string{"/bin/sh"}, Workdir: "/"},
		Digest: digestOf([]byte(fmt.Sprintf(`{"config":%q,"layers":[%q,%q]}`, digestOf(encode(t, defaultConfig())), digestOf(lower), digestOf(upper)))),
	}
	got.tree.Tar = nil
	if diff := cmp.Diff(want, got.tree); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	last := got.progress.last()
	if last.Stage != "image" || last.Done != last.Total || last.Total != uint64(len(lower)+len(upper)) || last.Unit != "bytes" {
		t.Errorf("last report: %+v", last)
	}
	if diff := cmp.Diff([]string{"looking up " + reg.host + "/dev/box:1.2", "downloading 2 layers", "unpacking"}, got.progress.messages()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	if n := len(blobsOf(t, opt.Blobs)); n != 2 {
		t.Errorf("%d files in the store", n)
	}

	again, err := fetchAll(t, t.Context(), src, ref(reg, "dev/box@"+upstream))
	if err != nil {
		t.Fatal(err)
	}
	if again.tree.Digest != got.tree.Digest || again.tree.Upstream != upstream {
		t.Errorf("by digest it is another image: %+v", again.tree)
	}
	for _, l := range layers {
		if n := reg.count(l.Digest); n != 1 {
			t.Errorf("layer %s was downloaded %d times", l.Digest, n)
		}
	}
}

// An image that shares all layers but one costs only that one.
func TestSharedLayersAreDownloadedOnce(t *testing.T) {
	reg := newTestRegistry(t)
	common := layerOf(t, "common", noise(1, 1000))
	reg.putImage(t, "a", "latest", defaultConfig(), common, layerOf(t, "x", "a"))
	reg.putImage(t, "b", "latest", defaultConfig(), common, common, layerOf(t, "x", "b"))
	src := NewRegistry(testOptions(t))
	for _, name := range []string{"a", "b"} {
		got, err := fetchAll(t, t.Context(), src, ref(reg, name))
		if err != nil || got.files["x"] != name {
			t.Fatalf("%s: %v, %v", name, got.files, err)
		}
		if name == "b" && got.progress.messages()[1] != "downloading 1 layer" {
			t.Errorf("messages %q", got.progress.messages())
		}
	}
	if n := reg.count(digestOf(common)); n != 1 {
		t.Errorf("downloaded %d times", n)
	}
}

// Two pulls at once of images with the same layers share the downloads, whether they share the Registry or not.
func TestParallelPullsShareDownloads(t *testing.T) {
	reg := newTestRegistry(t)
	var layers [][]byte
	for i := range 6 {
		layers = append(layers, layerOf(t, fmt.Sprintf("file%d", i), noise(byte(i), 200_000)))
	}
	reg.putImage(t, "box", "latest", defaultConfig(), layers...)
	opt := testOptions(t)
	other := opt
	other.Blobs = blob.Open(opt.Blobs.Dir()) // as another process has it
	sources := []*Registry{NewRegistry(opt), NewRegistry(opt), NewRegistry(other)}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			got, err := fetchAll(t, t.Context(), sources[i%3], ref(reg, "box"))
			if err != nil || len(got.files) != 6 {
				t.Errorf("%d files, %v", len(got.files), err)
			}
		})
	}
	wg.Wait()
	for i, l := range layers {
		if n := reg.count(digestOf(l)); n != 1 {
			t.Errorf("layer %d was downloaded %d times", i, n)
		}
	}
}

// No more layers than allowed come at a time, and not fewer either.
func TestDownloadsAreBounded(t *testing.T) {
	reg := newTestRegistry(t)
	var layers [][]byte
	for i := range 8 {
		layers = append(layers, layerOf(t, fmt.Sprintf("file%d", i), noise(byte(i), 1000)))
	}
	reg.putImage(t, "box", "latest", defaultConfig(), layers...)
	config := digestOf(encode(t, defaultConfig()))
	full, once := make(chan struct{}), sync.Once{}
	reg.whenGetting("/blobs/", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		reg.mu.Lock()
		within := reg.within
		reg.mu.Unlock()
		if within == 3 {
			once.Do(func() { close(full) })
		}
		if !strings.HasSuffix(r.URL.Path, config) {
			select {
			case <-full: // nobody is served before there are three
			case <-r.Context().Done():
			}
		}
		next.ServeHTTP(w, r)
	})
	opt := testOptions(t)
	opt.Parallel = 3
	if _, err := fetchAll(t, t.Context(), NewRegistry(opt), ref(reg, "box")); err != nil {
		t.Fatal(err)
	}
	if reg.most != 3 {
		t.Errorf("%d at a time", reg.most)
	}
}

func TestCancelIsPrompt(t *testing.T) {
	for name, part := range map[string]string{"login": "/v2/", "manifest": "/manifests/", "blob": "/blobs/"} {
		t.Run(name, func(t *testing.T) {
			reg := newTestRegistry(t)
			reg.putImage(t, "box", "latest", defaultConfig(), layerOf(t, "a", noise(1, 100_000)))
			ctx, cancel := context.WithCancelCause(t.Context())
			gaveUp := errors.New("gave up")
			reg.whenGetting(part, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
				cancel(gaveUp)
				<-r.Context().Done()
			})
			noLeaks(t)
			src := NewRegistry(testOptions(t))
			_, err := fetchAll(t, ctx, src, ref(reg, "box"))
			if !errors.Is(err, gaveUp) {
				t.Errorf("error %v", err)
			}
			src.http.CloseIdleConnections()
		})
	}
}

// Closing a stream that nobody has read to its end ends everything.
func TestCloseEndsThePull(t *testing.T) {
	reg := newTestRegistry(t)
	reg.putImage(t, "box", "latest", defaultConfig(), layerOf(t, "a", noise(1, 100_000)))
	asked := make(chan struct{})
	reg.whenGetting("/blobs/", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, digestOf(encode(t, defaultConfig()))) {
			next.ServeHTTP(w, r)
			return
		}
		close(asked)
		<-r.Context().Done()
	})
	noLeaks(t)
	src := NewRegistry(testOptions(t))
	tree, err := src.Fetch(t.Context(), source.Request{Location: ref(reg, "box"), Arch: "amd64", Staging: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	for range 2 {
		if err := tree.Tar.Close(); err != nil {
			t.Error(err)
		}
	}
	src.http.CloseIdleConnections()
}

func TestPlatforms(t *testing.T) {
	reg := newTestRegistry(t)
	index := func(entries ...object) []byte {
		return encode(t, object{"schemaVersion": 2, "mediaType": indexType, "manifests": entries})
	}
	entry := func(file, os, arch, variant string) object {
		config := object{"architecture": arch, "os": os, "config": object{}}
		layer := layerOf(t, "which", file)
		reg.putImage(t, "box", "tmp-"+file, config, layer)
		d := describeBlob(manifestType, imageManifest(t, config, layer))
		d["platform"] = object{"os": os, "architecture": arch, "variant": variant}
		return d
	}
	attestation := entry("att", "unknown", "unknown", "")
	reg.put(t, http.MethodPut, "/v2/box/manifests/multi", indexType, index(
		entry("arm", "linux", "arm64", "v8"), entry("v3", "linux", "amd64", "v3"), entry("amd", "linux", "amd64", ""), attestation,
		entry("win", "windows", "amd64", "")))
	reg.put(t, http.MethodPut, "/v2/box/manifests/others", indexType, index(
		entry("arm", "linux", "arm64", "v8"), entry("s390", "linux", "s390x", ""), attestation))
	nested := describeBlob(indexType, index(entry("amd", "linux", "amd64", "")))
	reg.put(t, http.MethodPut, "/v2/box/manifests/inner", indexType, index(entry("amd", "linux", "amd64", "")))
	reg.put(t, http.MethodPut, "/v2/box/manifests/nested", indexType, index(nested))
	src := NewRegistry(testOptions(t))
	for tag, want := range map[string]string{"multi": "amd", "nested": "amd", "tmp-amd": "amd"} {
		got, err := fetchAll(t, t.Context(), src, ref(reg, "box:"+tag))
		if err != nil || got.files["which"] != want {
			t.Errorf("%s: %v, %v", tag, got.files, err)
		}
	}
	for tag, words := range map[string]string{
		"others":   "the image is for linux/arm64/v8, linux/s390x, and linux/amd64 is needed",
		"tmp-s390": "the image is for linux/s390x, and linux/amd64 is needed",
		"tmp-win":  "the image is for windows/amd64, and only Linux can be run",
	} {
		_, err := fetchAll(t, t.Context(), src, ref(reg, "box:"+tag))
		wantFault(t, err, fault.Invalid, words)
	}
}
