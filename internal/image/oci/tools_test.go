package oci

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/image/source"
)

// needTools skips a test where the tools are not installed, except on CI, where scripts/setup.sh --test has done that.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

func run(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return string(out)
}

// An image that umoci has made and skopeo has carried about is the same by every way.
func TestImagesOfOtherTools(t *testing.T) {
	needTools(t, "umoci", "skopeo")
	dir := t.TempDir()
	// umoci insert leaves the end of its tar streams away, padding included: whole blocks need none.
	kept, changed := noise(2, 512), noise(3, 100*512)
	writeFiles(t, dir, "one/kept", kept, "one/gone", kept, "one/changed", kept, "two/changed", changed)
	run(t, dir, "umoci", "init", "--layout", "layout")
	run(t, dir, "umoci", "new", "--image", "layout:box")
	run(t, dir, "umoci", "insert", "--image", "layout:box", "one", "/etc/x")
	run(t, dir, "umoci", "insert", "--image", "layout:box", "two/changed", "/etc/x/changed")
	run(t, dir, "umoci", "insert", "--image", "layout:box", "--whiteout", "/etc/x/gone")
	run(t, dir, "umoci", "config", "--image", "layout:box", "--config.entrypoint", "/bin/e", "--config.cmd", "c", "--config.env", "A=1",
		"--config.workingdir", "/src", "--config.user", "1:2", "--config.exposedports", "80/tcp", "--config.label", "k=v",
		"--config.stopsignal", "SIGINT", "--architecture", "amd64", "--os", "linux")
	reg := newTestRegistry(t)
	for _, to := range []string{"docker-archive:box.tar:box:1", "oci-archive:oci.tar:box", "docker://" + ref(reg, "dev/box:1")} {
		run(t, dir, "skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", "oci:layout:box", to)
	}
	run(t, dir, "skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", "--format", "v2s2", "oci:layout:box", "docker://"+ref(reg, "dev/box:docker"))

	want := source.Config{
		User: "1:2", Workdir: "/src", Env: []string{"A=1"}, Entrypoint: []string{"/bin/e"}, Cmd: []string{"c"}, ExposedPorts: []string{"80/tcp"},
		Labels: map[string]string{"k": "v"}, StopSignal: "SIGINT",
	}
	for location, kind := range map[string]string{
		filepath.Join(dir, "layout:box"): KindLayout, filepath.Join(dir, "oci.tar:box"): KindArchive,
		filepath.Join(dir, "box.tar:box:1"): KindDockerArchive, ref(reg, "dev/box:1"): KindRegistry, ref(reg, "dev/box:docker"): KindRegistry,
	} {
		got, err := fetchAll(t, t.Context(), Sources(testOptions(t))[kind], location)
		if err != nil {
			t.Errorf("%s: %v", location, err)
			continue
		}
		if diff := cmp.Diff(map[string]string{"etc/x/kept": kept, "etc/x/changed": changed}, got.files); diff != "" {
			t.Errorf("%s (-want +got):\n%s", location, diff)
		}
		if diff := cmp.Diff(want, got.tree.Config); diff != "" {
			t.Errorf("%s: config (-want +got):\n%s", location, diff)
		}
	}
}

// What we write is understood by other tools, and means the same to them.
func TestOtherToolsReadOurs(t *testing.T) {
	needTools(t, "umoci", "skopeo")
	opt := testOptions(t)
	img := storedImage(t, opt, layerOf(t, "a", "lower", "b", "kept"), tarOf(t, "a", "upper"))
	dir := t.TempDir()
	if err := WriteLayout(t.Context(), opt.Blobs, filepath.Join(dir, "layout"), img, WriteOptions{Tag: "box"}); err != nil {
		t.Fatal(err)
	}
	archive, err := os.Create(filepath.Join(dir, "oci.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	if err := WriteArchive(t.Context(), opt.Blobs, archive, img, WriteOptions{Tag: "box"}); err != nil {
		t.Fatal(err)
	}
	reg := newTestRegistry(t)
	digest, err := NewRegistry(opt).Push(t.Context(), ref(reg, "dev/box:1"), img, WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"docker://" + ref(reg, "dev/box:1"), "oci:" + filepath.Join(dir, "layout:box"), "oci-archive:" + filepath.Join(dir, "oci.tar:box")} {
		var got struct {
			Digest       string
			Created      string
			Architecture string
			Layers       []string
			Labels       map[string]string
			Env          []string
		}
		out := run(t, dir, "skopeo", "inspect", "--tls-verify=false", from)
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got.Digest != digest || got.Created != "2024-05-06T07:08:09Z" || got.Architecture != "amd64" || got.Labels["k"] != "v" ||
			!slices.Equal(got.Layers, []string{img.Layers[0].Digest, img.Layers[1].Digest}) || !slices.Equal(got.Env, img.Config.Env) {
			t.Errorf("%s: %+v", from, got)
		}
	}
	// To unpack checks the digests of the uncompressed layers, too.
	run(t, dir, "umoci", "unpack", "--rootless", "--image", "layout:box", "bundle")
	for name, want := range map[string]string{"a": "upper", "b": "kept"} {
		if data, err := os.ReadFile(filepath.Join(dir, "bundle", "rootfs", name)); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if out := run(t, dir, "umoci", "ls", "--layout", "layout"); strings.TrimSpace(out) != "box" {
		t.Errorf("tags %q", out)
	}
}
