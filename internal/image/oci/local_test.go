package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/image/layer"
)

// layoutFiles are the files of a layout of one image, names and contents by turns.
func layoutFiles(t *testing.T, tag string, config object, layers ...[]byte) []string {
	t.Helper()
	manifest := imageManifest(t, config, layers...)
	d := describeBlob(manifestType, manifest)
	if tag != "" {
		d["annotations"] = object{refName: tag}
	}
	index := encode(t, object{"schemaVersion": 2, "manifests": []object{d}})
	out := []string{layoutFile, layoutVersion, indexFile, string(index)}
	for _, data := range append([][]byte{manifest, encode(t, config)}, layers...) {
		out = append(out, blobsDir+digestOf(data)[7:], string(data))
	}
	return out
}

func TestLayouts(t *testing.T) {
	lower, upper := layerOf(t, "a", "lower", "b", "kept"), layerOf(t, "a", "upper")
	files := layoutFiles(t, "1.2", defaultConfig(), lower, upper)
	dir := t.TempDir()
	writeFiles(t, filepath.Join(dir, "layout"), files...)
	writeFiles(t, filepath.Join(dir, "with:colon"), files...)
	plain := tarOf(t, files...)
	writeFiles(t, dir, "layout.tar", string(plain), "layout.tgz", string(gzipped(t, plain)))
	upstream := digestOf(imageManifest(t, defaultConfig(), lower, upper))
	digest := ""
	for _, location := range []string{
		"layout", "layout:1.2", "layout@" + upstream, "with:colon", "with:colon:1.2", "layout.tar", "layout.tar:1.2", "layout.tgz", "layout.tgz@" + upstream,
	} {
		noLeaks(t)
		location = filepath.Join(dir, location)
		opt := testOptions(t)
		got, err := fetchAll(t, t.Context(), NewLayout(opt), location)
		if err != nil {
			t.Errorf("%s: %v", location, err)
			continue
		}
		if diff := cmp.Diff(map[string]string{"a": "upper", "b": "kept"}, got.files); diff != "" {
			t.Errorf("%s (-want +got):\n%s", location, diff)
		}
		if digest == "" {
			digest = got.tree.Digest
		}
		if got.tree.Digest != digest || got.tree.Upstream != upstream || !strings.HasSuffix(got.tree.Origin, location) {
			t.Errorf("%s: %+v", location, got.tree)
		}
		if diff := cmp.Diff([]string{"reading " + strings.Split(location, "@")[0], "reading 2 layers", "unpacking"}, got.progress.messages()); diff != "" &&
			!strings.Contains(location, ":") {
			t.Errorf("%s: messages (-want +got):\n%s", location, diff)
		}
		if n := len(blobsOf(t, opt.Blobs)); n != 2 {
			t.Errorf("%s: %d files in the store", location, n)
		}
	}
}

func TestLayoutsThatAreRefused(t *testing.T) {
	l := layerOf(t, "a", "b")
	good := layoutFiles(t, "x", defaultConfig(), l)
	change := func(name, content string) []string {
		out := append([]string{}, good...)
		for i := 0; i < len(out); i += 2 {
			if out[i] == name {
				out[i+1] = content
			}
		}
		return out
	}
	two := func(tags ...string) string {
		list := []object{}
		for i, tag := range tags {
			d := describeBlob(manifestType, []byte{byte(i)})
			if tag != "" {
				d["annotations"] = object{refName: tag}
			}
			list = append(list, d)
		}
		return string(encode(t, object{"schemaVersion": 2, "manifests": list}))
	}
	manifest := imageManifest(t, defaultConfig(), l)
	for name, tc := range map[string]struct {
		files []string
		tag   string
		class fault.Class
		words string
	}{
		"no layout":         {[]string{"x", "y"}, "", fault.Invalid, "it is no OCI image layout: there is no file oci-layout in it"},
		"no index":          {[]string{layoutFile, layoutVersion}, "", fault.Invalid, "there is no file index.json in it"},
		"a newer one":       {change(layoutFile, `{"imageLayoutVersion":"2.0.0"}`), "", fault.Invalid, `of the unknown version "2.0.0"`},
		"index no JSON":     {change(indexFile, `x`), "", fault.Invalid, "index.json: the manifest is no JSON object"},
		"index is an image": {change(indexFile, string(manifest)), "", fault.Invalid, "index.json: it is no index of manifests"},
		"empty index":       {change(indexFile, two()), "", fault.NotFound, "the layout has no image"},
		"no such tag":       {good, ":y", fault.NotFound, `has no image "y"; it has x`},
		"no such digest":    {good, "@" + zeroes, fault.NotFound, `has no image "` + zeroes + `"; it has x`},
		"several":           {change(indexFile, two("p", "q")), "", fault.Invalid, "one has to be chosen by a colon and its tag: it has p, q"},
		"manifest damaged":  {change(blobsDir+digestOf(manifest)[7:], string(manifest)+" "), "", fault.Invalid, "the manifest " + digestOf(manifest) + " is damaged"},
		"manifest missing":  {change(indexFile, two("p")), "", fault.Invalid, "is missing in the layout"},
		"layer missing":     {good[:8], "", fault.Invalid, "layer 1 of 1: blob " + digestOf(l) + " is missing in the layout"},
		"layer damaged":     {change(blobsDir+digestOf(l)[7:], string(l[:len(l)-1])+"x"), "", fault.Invalid, "layer 1 of 1: " + digestOf(l) + " is damaged: its"},
		"layer cut off":     {change(blobsDir+digestOf(l)[7:], string(l[:20])), "", fault.Invalid, "layer 1 of 1: " + digestOf(l) + " is cut off after 20 of"},
		"layer too long":    {change(blobsDir+digestOf(l)[7:], string(l)+"x"), "", fault.Invalid, "layer 1 of 1: " + digestOf(l) + " is longer than the"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFiles(t, filepath.Join(dir, "layout"), tc.files...)
			writeFiles(t, dir, "layout.tar", string(tarOf(t, tc.files...)))
			for _, location := range []string{"layout", "layout.tar"} {
				opt := testOptions(t)
				_, err := fetchAll(t, t.Context(), NewLayout(opt), filepath.Join(dir, location)+tc.tag)
				wantFault(t, err, tc.class, tc.words)
				if got := blobsOf(t, opt.Blobs); len(got) > 0 {
					t.Errorf("left in the store: %q", got)
				}
			}
		})
	}
}

func TestPathsThatAreNoFiles(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, "text", "hello", "empty", "", "cut.tar", string(tarOf(t, "a", strings.Repeat("x", 5000))[:2000]), "x.tgz", "\x1f\x8bnonsense")
	for location, words := range map[string]string{
		"nothing:tag": "no file " + filepath.Join(dir, "nothing"), "text": "it is no tar file", "empty": "it is no tar file",
		"cut.tar": "it is cut off in a", "x.tgz": "x.tgz",
	} {
		for _, src := range Sources(testOptions(t)) {
			if _, ok := src.(*Registry); ok {
				continue
			}
			_, err := fetchAll(t, t.Context(), src, filepath.Join(dir, location))
			if err == nil || !strings.Contains(err.Error(), words) || fault.Is(err, fault.Internal) {
				t.Errorf("%s: %v", location, err)
			}
		}
	}
	_, err := fetchAll(t, t.Context(), NewDockerArchive(testOptions(t)), dir)
	wantFault(t, err, fault.Invalid, "is no regular file")
	_, err = fetchAll(t, t.Context(), NewLayout(testOptions(t)), "")
	wantFault(t, err, fault.Invalid, "no path given")
}

// savedFiles is what `docker save` writes of one image.
func savedFiles(t *testing.T, config object, layers map[string][]byte, order ...string) []string {
	t.Helper()
	ids := []string{}
	files := []string{}
	for _, name := range order {
		ids = append(ids, digestOf(layers[name]))
		files = append(files, name, string(layers[name]))
	}
	config["rootfs"] = object{"type": "layers", "diff_ids": ids}
	manifest := []object{{"Config": "config.json", "RepoTags": []string{"box:1", "docker.io/library/box:2"}, "Layers": order}}
	return append(files, "config.json", string(encode(t, config)), "manifest.json", string(encode(t, manifest)))
}

func TestDockerArchives(t *testing.T) {
	lower, upper := tarOf(t, "a", "lower", "b", "kept"), tarOf(t, "a", "upper")
	files := savedFiles(t, defaultConfig(), map[string][]byte{"x/layer.tar": lower, "y/layer.tar": upper}, "x/layer.tar", "y/layer.tar")
	dir := t.TempDir()
	writeFiles(t, dir, "box.tar", string(tarOf(t, files...)), "box.tgz", string(gzipped(t, tarOf(t, files...))))
	for _, location := range []string{"box.tar", "box.tar:box:1", "box.tar:box:2", "box.tar:library/box:1", "box.tgz"} {
		opt := testOptions(t)
		got, err := fetchAll(t, t.Context(), NewDockerArchive(opt), filepath.Join(dir, location))
		if err != nil {
			t.Errorf("%s: %v", location, err)
			continue
		}
		if diff := cmp.Diff(map[string]string{"a": "upper", "b": "kept"}, got.files); diff != "" {
			t.Errorf("%s (-want +got):\n%s", location, diff)
		}
		if l := got.tree.Layers[0]; l.Digest != digestOf(lower) || l.DiffID != l.Digest {
			t.Errorf("layer %+v", l)
		}
		if n := len(blobsOf(t, opt.Blobs)); n != 2 {
			t.Errorf("%d files in the store", n)
		}
	}
}

// Compressed layers are named by their digest, or else hashed; links lead to layers that images share.
func TestDockerArchivesOfOtherTools(t *testing.T) {
	packed := layerOf(t, "a", "packed")
	config := defaultConfig()
	config["rootfs"] = object{"diff_ids": []string{zeroes, zeroes, zeroes}}
	named := "sha256:" + digestOf(packed)[7:] + ".tar.gz"
	manifest := encode(t, []object{{"Config": "c", "Layers": []string{named, "v1/layer.tar", "link/layer.tar"}}})
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct {
		kind       byte
		name, data string
	}{
		{tar.TypeReg, "manifest.json", string(manifest)}, {tar.TypeReg, "c", string(encode(t, config))}, {tar.TypeReg, named, string(packed)},
		{tar.TypeLink, "v1/layer.tar", named}, {tar.TypeSymlink, "link/layer.tar", "../v1/layer.tar"}, {tar.TypeSymlink, "loop", "loop"},
	} {
		hdr := &tar.Header{Typeflag: f.kind, Name: f.name, Mode: 0o600}
		if f.kind == tar.TypeReg {
			hdr.Size = int64(len(f.data))
		} else {
			hdr.Linkname, f.data = f.data, ""
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFiles(t, dir, "box.tar", buf.String())
	opt := testOptions(t)
	got, err := fetchAll(t, t.Context(), NewDockerArchive(opt), filepath.Join(dir, "box.tar"))
	if err != nil || got.files["a"] != "packed" || len(got.tree.Layers) != 3 || got.tree.Layers[2].Digest != digestOf(packed) {
		t.Errorf("%v %v %v", got.files, got.tree.Layers, err)
	}
	a, err := openArchive(t.Context(), filepath.Join(dir, "box.tar"), dir, layer.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if _, err := a.find("loop"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a link to itself: %v", err)
	}
}

func TestDockerArchivesThatAreRefused(t *testing.T) {
	l := tarOf(t, "a", "b")
	good := func() []string {
		return savedFiles(t, defaultConfig(), map[string][]byte{"l.tar": l}, "l.tar")
	}
	with := func(name, content string) []string {
		out := good()
		for i := 0; i < len(out); i += 2 {
			if out[i] == name {
				out[i+1] = content
			}
		}
		return out
	}
	for name, tc := range map[string]struct {
		files []string
		ref   string
		class fault.Class
		words string
	}{
		"no manifest":    {[]string{"a", "b"}, "", fault.Invalid, "there is no manifest.json in it"},
		"no JSON":        {with("manifest.json", "x"), "", fault.Invalid, "its manifest.json is damaged"},
		"no image":       {with("manifest.json", "[]"), "", fault.Invalid, "there is no image in it"},
		"no config":      {with("manifest.json", `[{"Layers":[]}]`), "", fault.Invalid, "names no configuration"},
		"missing config": {with("manifest.json", `[{"Config":"nope"}]`), "", fault.Invalid, "the configuration nope is missing"},
		"two images":     {with("manifest.json", `[{"Config":"a","RepoTags":["p"]},{"Config":"b","RepoTags":["q"]}]`), "", fault.Invalid, "chosen by a colon and its reference: p, q"},
		"no such image":  {good(), ":other", fault.NotFound, `there is no image "other" in it; it has box:1, docker.io/library/box:2`},
		"by digest":      {good(), "@" + zeroes, fault.Invalid, "named by their tags"},
		"missing layer":  {good()[2:], "", fault.Invalid, "layer 1 of 1: l.tar is missing"},
		"fewer layers":   {with("manifest.json", `[{"Config":"config.json"}]`), "", fault.Invalid, "it has 0 layers, and its configuration names 1"},
		"another layer":  {with("l.tar", string(tarOf(t, "a", "c"))), "", fault.Invalid, "layer 1 of 1: " + digestOf(l) + " is damaged"},
		"another arch":   {with("config.json", `{"architecture":"arm64"}`), "", fault.Invalid, "the image is for linux/arm64, and linux/amd64 is needed"},
		"odd diff id":    {with("config.json", `{"rootfs":{"diff_ids":["../x"]}}`), "", fault.Invalid, `layer 1 of 1: "../x" is not a sha256 digest`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFiles(t, dir, "box.tar", string(tarOf(t, tc.files...)))
			opt := testOptions(t)
			_, err := fetchAll(t, t.Context(), NewDockerArchive(opt), filepath.Join(dir, "box.tar")+tc.ref)
			wantFault(t, err, tc.class, tc.words)
			if got := blobsOf(t, opt.Blobs); len(got) > 0 {
				t.Errorf("left in the store: %q", got)
			}
		})
	}
}

// A small file that becomes a large one is refused.
func TestArchiveBomb(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, "bomb.tgz", string(gzipped(t, make([]byte, 10<<20))))
	opt := testOptions(t)
	opt.Limits.Size = 1 << 20
	_, err := fetchAll(t, t.Context(), NewDockerArchive(opt), filepath.Join(dir, "bomb.tgz"))
	wantFault(t, err, fault.Exhausted, "it is larger than 1048576 bytes when it is decompressed")
}

// Names of a megabyte each compress to nothing, and would be kept in memory.
func TestArchiveOfNames(t *testing.T) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for i := range 40 {
		name := strings.Repeat("n", 900_000) + strconv.Itoa(i)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFiles(t, dir, "names.tgz", string(gzipped(t, plain.Bytes())))
	_, err := fetchAll(t, t.Context(), NewDockerArchive(testOptions(t)), filepath.Join(dir, "names.tgz"))
	wantFault(t, err, fault.Invalid, "the names in it have more than")
}

func TestReadingFilesEndsWithTheContext(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, "box.tgz", string(gzipped(t, tarOf(t, "a", strings.Repeat("x", 1<<20)))))
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gaveUp)
	_, err := fetchAll(t, ctx, NewDockerArchive(testOptions(t)), filepath.Join(dir, "box.tgz"))
	if !errors.Is(err, gaveUp) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "box.tgz")); err != nil {
		t.Error(err)
	}
}
