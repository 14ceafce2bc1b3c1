package build

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/image/blob"
	"banger/internal/image/source"
)

// buildah makes an image of the same Dockerfile with buildah.
func buildah(t *testing.T, text, dir string) []string {
	t.Helper()
	home := t.TempDir()
	file := filepath.Join(home, "Dockerfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		args = append([]string{"--root", home + "/root", "--runroot", home + "/run", "--storage-driver", "vfs"}, args...)
		if out, err := exec.CommandContext(t.Context(), "buildah", args...).CombinedOutput(); err != nil {
			t.Fatalf("buildah %q: %v\n%s", args, err, out)
		}
	}
	run("bud", "--isolation", "chroot", "-t", "x", "-f", file, dir)
	run("push", "x", "oci:"+home+"/out:x")

	blobs := blob.Open(filepath.Join(home, "blobs"))
	var index struct{ Manifests []struct{ Digest string } }
	var manifest struct {
		Layers []struct{ MediaType, Digest string }
	}
	read := func(name string, v any) {
		t.Helper()
		data, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(data, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blobFile := func(digest string) string {
		return filepath.Join(home, "out/blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	read(filepath.Join(home, "out/index.json"), &index)
	read(blobFile(index.Manifests[0].Digest), &manifest)
	var layers []source.Layer
	for _, l := range manifest.Layers {
		data, err := os.ReadFile(blobFile(l.Digest))
		if err != nil {
			t.Fatal(err)
		}
		w, err := blobs.Create()
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
		layers = append(layers, source.Layer{MediaType: l.MediaType, Digest: digest, Size: size})
	}
	return listTree(t, blobs, t.TempDir(), layers)
}

// The same Dockerfile gives the same tree as with another builder. What is not in here is where banger does as BuildKit
// does and buildah does not: --chmod is for the directories that a destination needs too, a wildcard may fit nothing, and
// what a pattern of .dockerignore takes out of a directory does not come back with an exception for that directory.
func TestLikeBuildah(t *testing.T) {
	if _, err := exec.LookPath("buildah"); err != nil || os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("buildah is needed, and root for it: %v", err)
		}
		t.Skip("no buildah, or not root")
	}
	files := append(project[:len(project):len(project)], file{name: "t.tar", data: string(tarOf(t, file{name: "in/", mode: 0o711, uid: 4},
		file{name: "in/f", data: "F", uid: 5, gid: 6}, file{name: "in/l", link: "f"}, file{name: "h", link: "=in/f", uid: 5, gid: 6}))},
		file{name: "deep/a/b/c.o", data: "o"}, file{name: "deep/a/b/c.c", data: "c"}, file{name: "deep/keep/k.o", data: "k"})
	dir := contextDir(t, files...)
	for ignore, stages := range map[string][]string{
		"": {
			"COPY a.txt b.txt run.sh /x/\nCOPY a.txt /y\nCOPY dir/x /z/\nWORKDIR /w/v\nCOPY run.sh go\nCOPY a.txt .",
			"COPY dir/sub /x/\nCOPY dir/x /x/y\nCOPY b.txt /x\nCOPY dir/sub /x",
			"COPY *.txt /x/\nCOPY d*/s*/y /y/\nCOPY [a-c].t?t /z/",
			"COPY tofile /x/\nCOPY todir/x /y\nCOPY todir/sub/y /z/",
			"COPY t.tar /x/\nADD t.tar /q/\nCOPY a.txt /q/in/l2\nCOPY a.txt /q/in/\nCOPY b.txt /q/in/f",
			"ADD t.tar /x\nADD t.tar /y/\nADD a.txt /z/\nADD t.tar /x/in/",
			"COPY --chown=5:6 a.txt /x/\nCOPY --chown=7 dir/sub /y/",
			"WORKDIR /s\nCOPY --chown=3:4 dir/sub /s/d/\nCOPY a.txt /s/\nCOPY --from=s0 /x/a.txt /x/b.txt /x/\nCOPY --from=s5 /y /y/",
		},
		"*\n!deep\n**/*.o\n!deep/keep/k.o": {"COPY . /x/"},
		"**/*.o\ndir/link":                 {"COPY deep dir /x/"},
	} {
		text, last := "", "FROM scratch\n"
		for i, s := range stages {
			text += fmt.Sprintf("FROM scratch AS s%d\n%s\n", i, s)
			last += fmt.Sprintf("COPY --from=s%d / /s%d/\n", i, i)
		}
		ignore += "\n.dockerignore"
		if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte(ignore), 0o600); err != nil {
			t.Fatal(err)
		}
		b := newBench(t)
		got := b.tree(b.mustBuild(text+last, dir, ignoring(ignore)).Layers)
		if diff := cmp.Diff(buildah(t, text+last, dir), got); diff != "" {
			t.Errorf("with .dockerignore %q: tree (-buildah +banger):\n%s", ignore, diff)
		}
	}
}
