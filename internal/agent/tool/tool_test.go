package tool

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// plant makes files: a directory for a name that ends with a slash, a whiteout for "WHITEOUT", a symbolic link for
// "-> TARGET", a hard link for "= NAME", a regular file for everything else.
func plant(t *testing.T, files ...[2]string) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		path, content := filepath.Join(root, f[0]), f[1]
		var err error
		switch {
		case strings.HasSuffix(f[0], "/"):
			err = os.MkdirAll(path, 0o755)
		case content == "WHITEOUT":
			err = unix.Mknod(path, unix.S_IFCHR, 0)
		case strings.HasPrefix(content, "-> "):
			err = os.Symlink(content[3:], path)
		case strings.HasPrefix(content, "= "):
			err = os.Link(filepath.Join(root, content[2:]), path)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// stream runs f on open directories and returns the names in the archive that it writes, with links and contents.
func stream(t *testing.T, f func(w io.Writer, dirs []int) error, roots ...string) ([]string, error) {
	t.Helper()
	t.Chdir(t.TempDir()) // and back, whatever f does
	var dirs []int
	for _, root := range roots {
		fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(fd) }()
		dirs = append(dirs, fd)
	}
	var out bytes.Buffer
	if err := f(&out, dirs); err != nil {
		return nil, err
	}
	var lines []string
	r := tar.NewReader(&out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		line := h.Name
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(content) > 0 {
			line += " " + string(content[:min(len(content), 10)])
		}
		lines = append(lines, line)
	}
}

func TestArchive(t *testing.T) {
	root := plant(t,
		[2]string{"b/deep/"}, [2]string{"b/deep/file", "content"}, [2]string{"b/deep/same", "= b/deep/file"}, [2]string{"b.txt", "x"},
		[2]string{"a", "-> /etc/passwd"}, [2]string{"dir", "-> b"}, [2]string{".wh.kept", "k"}, [2]string{"gone", "WHITEOUT"},
	)
	socket, err := net.Listen("unix", filepath.Join(root, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	got, err := stream(t, func(w io.Writer, dirs []int) error { return Archive(w, dirs[0]) }, root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"./", ".wh.kept k", "a -> /etc/passwd", "b/", "b/deep/", "b/deep/file content", "b/deep/same -> b/deep/file", "b.txt x",
		"dir -> b", "gone",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestHolesAreKeptInPlace(t *testing.T) {
	root := plant(t, [2]string{"sparse", ""}, [2]string{"empty hole", ""})
	f, err := os.OpenFile(filepath.Join(root, "sparse"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const size = 3 << 20
	want := make([]byte, size)
	for _, at := range []int64{1 << 20, 2<<20 + 5} {
		copy(want[at:], "data")
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.Truncate(filepath.Join(root, "empty hole"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	dir, err := openDir(unix.AT_FDCWD, root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(dir) }()
	var out bytes.Buffer
	if err := Archive(&out, dir); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&out)
	for {
		h, err := r.Next()
		if err != nil {
			t.Fatal("no sparse file in the archive: ", err)
		}
		if h.Name != "sparse" {
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v, or other bytes", len(got), err)
		}
		return
	}
}

func changes(w io.Writer, dirs []int) error { return Changes(w, dirs[0], dirs[1]) }

func TestChanges(t *testing.T) {
	image := plant(t,
		[2]string{"dir/"}, [2]string{"dir/a", "a"}, [2]string{"dir/b", "b"}, [2]string{"file", ""}, [2]string{"link", "-> dir"},
		[2]string{"opaque/"}, [2]string{"opaque/old", "o"}, [2]string{"opaque/sub/"},
	)
	upper := plant(t,
		[2]string{"dir/"}, [2]string{"dir/a", "WHITEOUT"}, [2]string{"dir/never", "WHITEOUT"}, [2]string{"dir/Z", "z"},
		[2]string{"file/"}, [2]string{"file/x", "x"}, [2]string{"file/y", "WHITEOUT"},
		[2]string{"link/"}, [2]string{"link/a", "WHITEOUT"}, // the image's link is no directory of the image
		[2]string{"new/"}, [2]string{"opaque/sub/"}, [2]string{"opaque/sub/gone", "WHITEOUT"},
	)
	want := []string{"dir/", "dir/.wh.a", "dir/Z z", "file/", "file/x x", "link/", "new/", "opaque/", "opaque/sub/"}
	// Only root can say what the overlay says.
	if os.Geteuid() == 0 {
		for _, name := range []string{"opaque", "new"} {
			if err := unix.Lsetxattr(filepath.Join(upper, name), opaqueXattr, []byte("y"), 0); err != nil {
				t.Fatal(err)
			}
		}
		want = []string{"dir/", "dir/.wh.a", "dir/Z z", "file/", "file/x x", "link/", "new/", "opaque/", "opaque/.wh..wh..opq", "opaque/sub/"}
	}
	if err := errors.Join(os.Chmod(image, 0o755), os.Chmod(upper, 0o755)); err != nil {
		t.Fatal(err)
	}
	got, err := stream(t, changes, upper, image)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := os.Chmod(upper, 0o711); err != nil {
		t.Fatal(err)
	}
	if got, err = stream(t, changes, upper, image); err != nil || got[0] != "./" {
		t.Errorf("with another root: %q, %v", got, err)
	}
}

func TestChangesRefusesWhatWouldBeReadAsAWhiteout(t *testing.T) {
	_, err := stream(t, changes, plant(t, [2]string{"etc/"}, [2]string{"etc/.wh.passwd", ""}), plant(t))
	if err == nil || !strings.Contains(err.Error(), "etc/.wh.passwd: a name that begins with .wh.") {
		t.Errorf("err = %v", err)
	}
}

func TestMainSaysWhatIsWrong(t *testing.T) {
	for want, args := range map[string][]string{
		"runs as process 1 only": nil, `there is no tool "x"`: {"x"}, "takes no arguments": {"archive", "x"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(args, &stdout, &stderr)
		if code != 1 || stdout.Len() != 0 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: code %d, %q", args, code, stderr.String())
		}
	}
}
