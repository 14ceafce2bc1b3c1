package layer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLikeUmoci compares with what umoci unpacks, entry by entry: an image whose layers umoci itself and tar have made.
func TestLikeUmoci(t *testing.T) {
	for _, tool := range []string{"umoci", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err, " (scripts/setup.sh --test installs it)")
			}
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("owners and devices need root")
	}
	dir := t.TempDir()
	layout, bundle, ready := filepath.Join(dir, "layout"), filepath.Join(dir, "bundle"), filepath.Join(dir, "ready")
	rootfs, image := filepath.Join(bundle, "rootfs"), layout+":test"
	run(t, "umoci", "init", "--layout", layout)
	run(t, "umoci", "new", "--image", image)
	run(t, "umoci", "unpack", "--image", image, bundle)
	for _, change := range []func(*testing.T, string){plant, prune, prune2} {
		change(t, rootfs)
		run(t, "umoci", "repack", "--refresh-bundle", "--image", image, bundle)
	}
	run(t, "umoci", "raw", "add-layer", "--image", image, tarLayer(t, dir))
	run(t, "umoci", "unpack", "--image", image, ready)

	want := unpacked(t, filepath.Join(ready, "rootfs"))
	layers := layersOf(t, layout)
	if len(layers) != 4 || len(want) < 40 {
		t.Fatalf("%d layers, %d files", len(layers), len(want))
	}
	r := Flatten(t.Context(), layers, Options{Scratch: t.TempDir()})
	defer r.Close()
	got := readFlat(t, r)
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	for p, f := range got { // umoci makes these as by mkdir -p, which gives them and the root the time of the test
		if f.Type == "dir" && (p == "" || strings.HasPrefix(p, "implied")) {
			f.Time = want[p].Time
			got[p] = f
		}
	}
	compare(t, "what umoci unpacks", want, got)
}

// plant makes the first layer.
func plant(t *testing.T, root string) {
	now := time.Unix(1600000000, 5000)
	for i, d := range []string{"etc/skel", "usr/bin", "usr/lib/x", "var/cache/a/b", "home/u", "dev", "odd", "gone/deep", "swap"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
		must(t, os.Chmod(filepath.Join(root, d), os.FileMode(0o700+i)))
	}
	write := func(name, body string, mode uint32, uid, gid int) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(root, name), []byte(body), 0o600))
		must(t, os.Lchown(filepath.Join(root, name), uid, gid))
		must(t, unix.Chmod(filepath.Join(root, name), mode))
		must(t, os.Chtimes(filepath.Join(root, name), now, now))
	}
	write("etc/hosts", "root:x:0:0\n", 0o644, 0, 0)
	write("etc/shadow", "root:*\n", 0o640, 0, 42)
	write("usr/bin/su", "su", 0o4755, 0, 0)
	write("usr/bin/wall", "wall", 0o2755, 0, 5)
	write("usr/bin/ping", strings.Repeat("ping", 5000), 0o755, 0, 0)
	write("home/u/file", "mine", 0o600, 1000, 1000)
	write("home/u/far", "far", 0o600, 4000000000, 65534)
	write("odd/new\nline", "1", 0o644, 0, 0)
	write("odd/\xff\xfe\x80", "2", 0o644, 0, 0)
	write("odd/"+strings.Repeat("n", 255), "3", 0o644, 0, 0)
	write("odd/a b\\c\"d'", "4", 0, 0, 0)
	write("usr/lib/x/libx.so", "lib", 0o644, 0, 0)
	write("gone/deep/file", "gone", 0o644, 0, 0)
	write("swap/file", "swap", 0o644, 0, 0)
	for i := range 40 {
		write(fmt.Sprintf("var/cache/a/b/%d", i), strings.Repeat(fmt.Sprint(i), i*300), 0o644, i, i)
	}
	must(t, unix.Setxattr(filepath.Join(root, "usr/bin/ping"), "security.capability", []byte(capability), 0))
	must(t, unix.Setxattr(filepath.Join(root, "home/u/file"), "user.note", []byte("a\x00b\n"), 0))
	must(t, unix.Setxattr(filepath.Join(root, "home/u"), "user.dir", []byte(strings.Repeat("v", 1500)), 0))
	must(t, unix.Setxattr(filepath.Join(root, "home"), "trusted.t", []byte("t"), 0))
	for _, name := range []string{"usr/bin/ping4", "usr/bin/ping6", "home/ping"} {
		must(t, os.Link(filepath.Join(root, "usr/bin/ping"), filepath.Join(root, name)))
	}
	must(t, os.Symlink("usr/lib", filepath.Join(root, "lib")))
	must(t, os.Symlink("/usr/bin", filepath.Join(root, "bin")))
	must(t, os.Symlink(strings.Repeat("x/", 150), filepath.Join(root, "etc/far")))
	must(t, os.Lchown(filepath.Join(root, "etc/far"), 7, 8))
	must(t, unix.Mknod(filepath.Join(root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(filepath.Join(root, "dev/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mknod(filepath.Join(root, "dev/fifo"), unix.S_IFIFO|0o600, 0))
	must(t, os.Truncate(filepath.Join(root, "home/u/far"), 20<<20)) // sparse
}

// prune makes the second layer: things removed, replaced by others and changed.
func prune(t *testing.T, root string) {
	must(t, os.RemoveAll(filepath.Join(root, "gone")))
	must(t, os.Remove(filepath.Join(root, "etc/shadow")))
	must(t, os.RemoveAll(filepath.Join(root, "swap")))
	must(t, os.WriteFile(filepath.Join(root, "swap"), []byte("a file now"), 0o644))
	must(t, os.Remove(filepath.Join(root, "etc/hosts")))
	must(t, os.Mkdir(filepath.Join(root, "etc/hosts"), 0o711))
	must(t, os.WriteFile(filepath.Join(root, "etc/hosts/inside"), nil, 0o644))
	must(t, os.Chmod(filepath.Join(root, "var/cache"), 0o1777))
	must(t, unix.Setxattr(filepath.Join(root, "home/u"), "user.dir", []byte("short"), 0))
	must(t, os.Link(filepath.Join(root, "usr/bin/wall"), filepath.Join(root, "usr/bin/wall2")))
}

// prune2 makes the third: a name of a hard link that an older layer made is replaced.
func prune2(t *testing.T, root string) {
	must(t, os.Remove(filepath.Join(root, "usr/bin/ping4")))
	must(t, os.WriteFile(filepath.Join(root, "usr/bin/ping4"), []byte("new"), 0o755))
	must(t, os.RemoveAll(filepath.Join(root, "var/cache/a")))
	must(t, os.MkdirAll(filepath.Join(root, "var/cache/a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "var/cache/a/b/5"), []byte("again"), 0o600))
}

// tarLayer writes the last layer with the host's tar: sparse, with entries below links to directories, whose parents
// are not mentioned, with an opaque directory and a hard link into a layer below.
func tarLayer(t *testing.T, dir string) string {
	t.Helper()
	src, out := filepath.Join(dir, "src"), filepath.Join(dir, "layer.tar")
	for _, d := range []string{"lib/x", "usr/bin", "home/u", "implied/a/b"} {
		must(t, os.MkdirAll(filepath.Join(src, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(src, "lib/x/libx.so"), []byte("newer"), 0o644))
	must(t, os.WriteFile(filepath.Join(src, "lib/x/.wh.nothing"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(src, "home/u/.wh..wh..opq"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(src, "home/u/fresh"), []byte("fresh"), 0o644))
	must(t, os.WriteFile(filepath.Join(src, "implied/a/b/c"), []byte("c"), 0o644))
	f, err := os.Create(filepath.Join(src, "sparse"))
	must(t, err)
	for _, at := range []int64{0, 3 << 20, 9<<20 + 77} {
		_, err := f.WriteAt([]byte("data"), at)
		must(t, err)
	}
	must(t, f.Truncate(12<<20))
	must(t, f.Close())
	run(t, "tar", "--format=posix", "--sparse", "--numeric-owner", "--owner=0", "--group=0", "-C", src, "-cf", out,
		"lib/x/libx.so", "lib/x/.wh.nothing", "home/u/fresh", "home/u/.wh..wh..opq", "implied/a/b/c", "sparse")
	return out
}

// layersOf returns the layers of the only image in an OCI layout.
func layersOf(t *testing.T, layout string) (out []Blob) {
	t.Helper()
	type descriptor struct {
		MediaType, Digest string
		Size              int64
	}
	var index struct{ Manifests []descriptor }
	var manifest struct{ Layers []descriptor }
	blob := func(digest string) string {
		return filepath.Join(layout, "blobs", strings.ReplaceAll(digest, ":", "/"))
	}
	data, err := os.ReadFile(filepath.Join(layout, "index.json"))
	must(t, err)
	must(t, json.Unmarshal(data, &index))
	data, err = os.ReadFile(blob(index.Manifests[len(index.Manifests)-1].Digest))
	must(t, err)
	must(t, json.Unmarshal(data, &manifest))
	for _, l := range manifest.Layers {
		out = append(out, Blob{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size,
			Open: func(context.Context) (io.ReadCloser, error) { return os.Open(blob(l.Digest)) }})
	}
	return out
}

// unpacked reads a directory.
func unpacked(t *testing.T, root string) map[string]file {
	t.Helper()
	r := newReference()
	inodes := map[uint64]*file{}
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		f := inodes[st.Ino]
		if f == nil {
			f = &file{Mode: int64(st.Mode & 0o7777), UID: int(st.Uid), GID: int(st.Gid), Time: st.Mtim.Nano(), Xattrs: xattrsOf(t, path)}
			inodes[st.Ino] = f
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f.Type = "file"
			body, err := os.ReadFile(path)
			if f.Body = string(body); err != nil {
				return err
			}
		case unix.S_IFDIR:
			f.Type = "dir"
		case unix.S_IFLNK:
			f.Type = "symlink"
			if f.Link, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFCHR:
			f.Type = "char"
		case unix.S_IFBLK:
			f.Type = "block"
		case unix.S_IFIFO:
			f.Type = "fifo"
		}
		if f.Type == "char" || f.Type == "block" {
			f.Device = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		r.at[clean(rel)] = f
		return nil
	}))
	return r.files()
}

func xattrsOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, syscall.ENOTSUP) {
		t.Skip("the file system of temporary files has no extended attributes")
	}
	must(t, err)
	var out []string
	for attr := range bytes.SplitSeq(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		if len(attr) == 0 {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, string(attr), value)
		must(t, err)
		out = append(out, fmt.Sprintf("%q=%q", attr, value[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
