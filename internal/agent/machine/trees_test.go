package machine_test

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/ext4"
)

// then is when the files of the test images were made.
var then = time.Unix(1_600_000_000, 123_456_789)

// tree is a root file system: headers of which only what matters is filled in, and contents by name.
type tree struct {
	headers  []*tar.Header
	contents map[string]string
}

// add adds a file. Directories have a slash at the end of their names.
func (tr *tree) add(h tar.Header, content string) *tree {
	if tr.contents == nil {
		tr.contents = map[string]string{}
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.Mode == 0 && h.Typeflag != tar.TypeLink {
		h.Mode = map[byte]int64{tar.TypeDir: 0o755, tar.TypeSymlink: 0o777}[h.Typeflag]
		if h.Mode == 0 {
			h.Mode = 0o644
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = then
	}
	h.Size, h.Format = int64(len(content)), tar.FormatPAX
	tr.headers = append(tr.headers, &h)
	tr.contents[h.Name] = content
	return tr
}

func (tr *tree) dirs(names ...string) *tree {
	for _, name := range names {
		tr.add(tar.Header{Name: name + "/"}, "")
	}
	return tr
}

func (tr *tree) file(name, content string) *tree { return tr.add(tar.Header{Name: name}, content) }

func (tr *tree) program(name, content string) *tree {
	return tr.add(tar.Header{Name: name, Mode: 0o755}, content)
}

func (tr *tree) link(name, target string) *tree {
	return tr.add(tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}, "")
}

// archive is the tree as a tar stream.
func (tr *tree) archive(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range tr.headers {
		err := w.WriteHeader(h)
		if err == nil {
			_, err = io.WriteString(w, tr.contents[h.Name])
		}
		if err != nil {
			t.Fatal(h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// image makes an image of the tree.
func (tr *tree) image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rootfs.ext4")
	if _, err := ext4.FromTar(t.Context(), bytes.NewReader(tr.archive(t)), path, ext4.Options{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// describe says in one line everything of a file that an archive has, but the time if it is not to count.
func describe(h *tar.Header, content string, withTime bool) string {
	s := fmt.Sprintf("%c %04o %d:%d %q", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname)
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		s += fmt.Sprintf(" %d,%d", h.Devmajor, h.Devminor)
	}
	if len(content) > 100 {
		content = fmt.Sprintf("%d bytes %x...", len(content), content[:20])
	}
	s += fmt.Sprintf(" %q", content)
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if strings.HasPrefix(key, "SCHILY.xattr.") {
			s += fmt.Sprintf(" %s=%q", key[len("SCHILY.xattr."):], h.PAXRecords[key])
		}
	}
	if withTime {
		s += " " + h.ModTime.UTC().Format(time.RFC3339Nano)
	}
	return s
}

// readArchive reads a stream into lines by name.
func readArchive(t *testing.T, stream string, withTime bool) (files map[string]string, order []string) {
	t.Helper()
	files = map[string]string{}
	r := tar.NewReader(strings.NewReader(stream))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is in the archive twice", h.Name)
		}
		files[h.Name] = describe(h, string(content), withTime)
		order = append(order, h.Name)
	}
}

// lines is the tree as readArchive has it.
func (tr *tree) lines() map[string]string {
	files := map[string]string{}
	for _, h := range tr.headers {
		files[h.Name] = describe(h, tr.contents[h.Name], true)
	}
	return files
}

// compare compares two archives file by file.
func compare(t *testing.T, want, got map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// program builds a program of testdata and returns its content.
func (l *lab) program(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(l.dir, name)
	if _, err := os.Stat(path); err != nil {
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./testdata/"+name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return readFile(t, path)
}

// busybox is a tree like that of the small distributions: one static program with many names.
func (l *lab) busybox(t *testing.T) *tree {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is not installed: scripts/setup.sh --test does it")
	}
	if imported, err := importedBy(path); err != nil || len(imported) > 0 {
		t.Fatalf("%s is not a static program (%q, %v): install busybox-static", path, imported, err)
	}
	tr := (&tree{}).dirs("bin", "sbin", "etc", "tmp", "root", "lib").program("bin/busybox", readFile(t, path))
	for _, name := range []string{
		"sh", "ls", "cat", "rm", "mkdir", "mv", "ln", "chmod", "chown", "mknod", "mkfifo", "touch", "stat", "id", "sleep", "tty", "uname",
	} {
		tr.link("bin/"+name, "busybox")
	}
	return tr.program("bin/probe", l.program(t, "probe")).
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1000::/home/dev:/bin/sh\n").
		file("etc/group", "root:x:0:\ndev:x:1000:\nextra:x:50:dev\n")
}

// importedBy lists the libraries that a program needs.
func importedBy(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return f.ImportedLibraries()
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
