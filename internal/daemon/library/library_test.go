package library

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/store"
)

func TestParsePlatform(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm64/v8": "arm64", "arm64": "arm64", "amd64": "amd64",
	} {
		if got, err := ParsePlatform(text); got != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"windows/amd64", "linux", "linux/", "linux/386", "linux/amd64/v3", "linux/arm64/v7", "/", "linux/linux/amd64"} {
		if got, err := ParsePlatform(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func TestDigestPrefix(t *testing.T) {
	for ref, want := range map[string]bool{
		"abcd": true, "sha256:0123": true, "abc": false, "sha256:abc": false, "abcg": false, "ABCD": false, "sha512:abcd": false, "": false,
	} {
		if _, got := digestPrefix(ref); got != want {
			t.Errorf("%q: %v", ref, got)
		}
	}
}

func TestNames(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const digest = "sha256:1"
	row := func(name string) store.Artifact { return store.Artifact{Name: name, Digest: digest, CreatedAt: at} }
	kept := names{}.with(row(digest))
	named := kept.with(row("a")).with(row("b"))
	if diff := cmp.Diff(names{digest: at}, kept); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(names{"a": at, "b": at}, named.with(row(digest))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"b"}, named.without("a").real(digest)); diff != "" {
		t.Error(diff)
	}
	dir := t.TempDir()
	if _, ok, err := readNames(dir); ok || err != nil {
		t.Errorf("none: %v, %v", ok, err)
	}
	if err := writeNames(dir, named); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := readNames(dir); !ok || err != nil || !got.equal(named) {
		t.Errorf("%v, %v, %v", got, ok, err)
	}
	if err := os.WriteFile(filepath.Join(dir, namesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := readNames(dir); ok || err == nil {
		t.Errorf("damaged: %v, %v", ok, err)
	}
	if got := claimsOf(dir, Artifact{Name: "made as", Digest: digest, Created: at}); len(got) != 1 || got[0].name != "made as" {
		t.Errorf("claims of a damaged file: %v", got)
	}
}

// What two directories share becomes free with the second of them.
func TestReclaimable(t *testing.T) {
	root := t.TempDir()
	a, b, other := filepath.Join(root, "a"), filepath.Join(root, "b"), filepath.Join(root, "c")
	for _, dir := range []string{a, b, other} {
		if err := os.MkdirAll(filepath.Join(dir, "boot"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(a, "rootfs")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file, filepath.Join(b, "rootfs")); err != nil {
		t.Fatal(err)
	}
	if used, shared := usage(a); shared < 1<<20 || used <= shared {
		t.Errorf("%d bytes, %d shared", used, shared)
	}
	if free := reclaimable([]string{a}); free[a] >= 1<<20 {
		t.Errorf("of one: %v", free)
	}
	if free := reclaimable([]string{a, b}); free[a] >= 1<<20 || free[b] < 1<<20 {
		t.Errorf("of both: %v", free)
	}
	if err := os.Link(file, filepath.Join(other, "rootfs")); err != nil {
		t.Fatal(err)
	}
	if free := reclaimable([]string{a, b}); free[a]+free[b] >= 1<<20 {
		t.Errorf("a third has it: %v", free)
	}
	if got := DiskUse(root); got < 1<<20 || got >= 2<<20 {
		t.Errorf("%d bytes of one file with three names", got)
	}
	if got := Usage(filepath.Join(root, "none")); got != 0 {
		t.Errorf("%d bytes of nothing", got)
	}
}

func TestNotHere(t *testing.T) {
	rows := []store.Artifact{
		{Name: "localhost:5000/app:v1"}, {Name: "registry.example/team/tool:latest"}, {Name: "debian-bookworm"}, {Name: "sha256:00", Digest: "sha256:00"},
	}
	for ref, want := range map[string]string{
		"app:v1":         "image app:v1 is not here, did you mean localhost:5000/app:v1?",
		"tool":           "image tool is not here, did you mean registry.example/team/tool:latest?",
		"debian-bokworm": "image debian-bokworm is not here, did you mean debian-bookworm?",
		"pp:v1":          "image pp:v1 is not here",
		"something":      "image something is not here",
	} {
		if err := (&Library{kind: store.Image}).notHere(ref, rows); err.Error() != want || fault.HintOf(err) != "banger image list" {
			t.Errorf("%s: %q with hint %q", ref, err, fault.HintOf(err))
		}
	}
}
