package test

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// largeVar asks for the full sizes of TestImageTree: minutes, and many gigabytes pass through the tools.
const largeVar = "BANGER_TEST_LARGE"

// What a guest has otherwise than its image, as docs/images.md and ARCHITECTURE.md say.
var provided = []string{
	"/dev", "/proc", "/sys", "/run", // file systems of the running kernel are mounted here
	"/lib/modules",                                                       // the kernel's modules
	"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/machine-id", // of the VM
}

// Directories that are copied to the VM's own disk and mounted from there: listed for themselves.
var kept = []string{"/root", "/home", "/workspace", "/var/lib/docker"}

// An image made by umoci and pushed by skopeo to distribution's registry looks in a VM as umoci unpacks it, entry by
// entry: whiteouts, hard links, capabilities, devices, odd names, holes.
func TestImageTree(t *testing.T) {
	home, vars := pullHome(t)
	registry := startRegistry(t)
	work := t.TempDir()
	lister := filepath.Join(work, "lister")
	buildStatic(t, "list", lister)
	s := treeSize{files: 2000, sparse: 64 << 20}
	if os.Getenv(largeVar) != "" {
		s = treeSize{files: 200_000, sparse: 3 << 30}
	}
	layout := makeTree(t, work, lister, s)
	ref := registry + "/tree:1"
	tool(t, "skopeo", "copy", "--quiet", "--dest-tls-verify=false", "oci:"+layout, "docker://"+ref)
	tool(t, "umoci", "unpack", "--image", layout, filepath.Join(work, "unpacked"))
	root := filepath.Join(work, "unpacked", "rootfs")

	began := time.Now()
	answers(t, vars, ref+"\n", "image", "pull", ref)
	t.Logf("pulled in %s", time.Since(began).Round(time.Millisecond))
	if used := listImages(t, vars); !slices.ContainsFunc(used, func(i listedImage) bool { return i.Name == ref && i.UsedBytes < s.most() }) {
		t.Errorf("the holes of a sparse file of %d bytes take room: %+v", s.sparse, used)
	}
	trees := append([]string{"/"}, kept...)
	var here []string
	for _, dir := range trees {
		here = append(here, filepath.Join(root, dir))
	}
	began = time.Now()
	got := runBanger(t, vars, append([]string{"vm", "run", "--rm", "--image", ref, "--"}, trees...)...)
	t.Logf("started and listed in %s", time.Since(began).Round(time.Millisecond))
	if got.code != 0 {
		t.Fatalf("list in the vm: exit code %d: %s", got.code, got.stderr)
	}
	compareTrees(t, parseTrees(tool(t, lister, here...)), parseTrees(got.stdout), s.files)
	nothingHalfMade(t, home, vars)
}

type treeSize struct {
	files  int
	sparse int64
}

// most is what the image may take on the disk: each small file a block and an inode, and some for the rest.
func (s treeSize) most() uint64 { return 48<<20 + uint64(s.files)*(4096+512) }

// parseTrees reads the output of testdata/list: what is said of each path of each tree.
func parseTrees(text string) map[string]string {
	all := map[string]string{}
	tree := -1
	for line := range strings.Lines(text) {
		quoted, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		path, err := strconv.Unquote(quoted)
		if err != nil {
			path = "unreadable: " + quoted
		}
		if path == "/" {
			tree++
		}
		if tree == 0 && slices.ContainsFunc(slices.Concat(provided, kept), func(dir string) bool {
			return path == dir || strings.HasPrefix(path, dir+"/")
		}) {
			continue
		}
		all[fmt.Sprintf("%d %q", tree, path)] = rest
	}
	return all
}

// compareTrees reports what differs, a few lines of it.
func compareTrees(t *testing.T, want, got map[string]string, atLeast int) {
	t.Helper()
	if len(want) < atLeast {
		t.Fatalf("umoci has unpacked only %d entries", len(want))
	}
	var differ []string
	for path, w := range want {
		if g, ok := got[path]; !ok {
			differ = append(differ, path+"\n\tonly umoci has it: "+w)
		} else if g != w {
			differ = append(differ, path+"\n\tumoci: "+w+"\n\tguest: "+g)
		}
	}
	for path, g := range got {
		if _, ok := want[path]; !ok {
			differ = append(differ, path+"\n\tonly the guest has it: "+g)
		}
	}
	slices.Sort(differ)
	for _, d := range differ[:min(len(differ), 20)] {
		t.Error(d)
	}
	t.Logf("%d entries compared, %d differ", len(want), len(differ))
}

// makeTree makes an image of four layers with umoci and returns its place for umoci: LAYOUT:TAG.
func makeTree(t *testing.T, work, lister string, s treeSize) string {
	t.Helper()
	layout := filepath.Join(work, "layout")
	image, bundle := layout+":tree", filepath.Join(work, "bundle")
	tool(t, "umoci", "init", "--layout", layout)
	tool(t, "umoci", "new", "--image", image)
	tool(t, "umoci", "unpack", "--image", image, bundle)
	root := plant{t, filepath.Join(bundle, "rootfs")}
	root.lowest(lister, s)
	tool(t, "umoci", "repack", "--refresh-bundle", "--image", image, bundle)
	root.second()
	tool(t, "umoci", "repack", "--image", image, bundle)

	raw := filepath.Join(work, "raw.tar")
	writeRawLayer(t, raw)
	tool(t, "umoci", "raw", "add-layer", "--image", image, raw)

	fresh := plant{t, filepath.Join(work, "fresh")}
	fresh.file("new", "in an opaque directory", 0o640)
	tool(t, "umoci", "insert", "--image", image, "--opaque", fresh.root, "/opaque")
	tool(t, "umoci", "config", "--image", image, "--config.entrypoint", "/list")
	return image
}

// plant puts files below a directory. Every method takes a path in it.
type plant struct {
	t    *testing.T
	root string
}

func (p plant) at(path string) string { return filepath.Join(p.root, path) }

func (p plant) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p plant) dir(path string, mode uint32) {
	p.t.Helper()
	p.must(os.MkdirAll(p.at(path), 0o755))
	p.must(unix.Chmod(p.at(path), mode))
}

func (p plant) file(path, content string, mode uint32) {
	p.t.Helper()
	p.must(os.MkdirAll(filepath.Dir(p.at(path)), 0o755))
	p.must(os.WriteFile(p.at(path), []byte(content), 0o600))
	p.must(unix.Chmod(p.at(path), mode))
}

func (p plant) symlink(path, target string) {
	p.t.Helper()
	p.must(os.Symlink(target, p.at(path)))
}

func (p plant) link(path, from string) {
	p.t.Helper()
	p.must(os.Link(p.at(from), p.at(path)))
}

func (p plant) node(path string, mode uint32, major, minor uint32) {
	p.t.Helper()
	p.must(unix.Mknod(p.at(path), mode, int(unix.Mkdev(major, minor))))
}

// lowest is what the first layer holds.
func (p plant) lowest(lister string, s treeSize) {
	p.t.Helper()
	for path, mode := range map[string]uint32{
		"etc": 0o755, "root": 0o700, "home/app/.cache": 0o700, "tmp": 0o1777, "workspace": 0o2775, "var/lib/docker": 0o711, "lib/modules": 0o755,
		"run": 0o755, "proc": 0o555, "sys": 0o555, "dev": 0o755, "nodes": 0o755, "links": 0o750, "deep/" + strings.Repeat("directory/", 40): 0o700,
	} {
		p.dir(path, mode)
	}
	p.file("etc/passwd", "root:x:0:0:root:/root:/list\napp:x:1000:1000::/home/app:/list\n", 0o644)
	p.file("etc/group", "root:x:0:\napp:x:1000:\n", 0o644)
	p.file("root/.profile", "umask 022\n", 0o600)
	p.file("workspace/readme", "kept\n", 0o664)
	p.must(os.Lchown(p.at("home/app"), 1000, 1000))

	program, err := os.ReadFile(lister)
	p.must(err)
	p.file("list", string(program), 0o755)
	p.file("bin/ping", "no program, but with a capability", 0o755)
	tool(p.t, "setcap", "cap_net_raw,cap_net_admin+ep", p.at("bin/ping"))
	p.file("bin/su", "setuid", 0o4755)
	p.file("bin/wall", "setgid", 0o2755)
	p.must(os.Lchown(p.at("bin/wall"), 0, 5))
	p.must(unix.Chmod(p.at("bin/wall"), 0o2755)) // a change of owner takes it away
	for i, id := range []int{1, 65534, 200_000, 3_000_000_000} {
		p.file(fmt.Sprintf("owners/%d", i), "", 0o600)
		p.must(os.Lchown(p.at(fmt.Sprintf("owners/%d", i)), id, id-1))
	}
	p.node("nodes/null", unix.S_IFCHR|0o666, 1, 3)
	p.node("nodes/disk", unix.S_IFBLK|0o660, 259, 300)
	p.must(unix.Mkfifo(p.at("nodes/fifo"), 0o622))
	p.names()
	p.attributes()

	p.file("links/a", "one file", 0o644)
	p.link("links/b", "links/a")
	p.link("bin/c", "links/a")
	for _, path := range []string{"gone/file", "gone/dir/below/file", "opaque/old", "opaque/dir/old", "turns/into-file/x", "turns/into-dir", "real/old"} {
		p.file(path, "lower", 0o644)
	}
	p.symlink("alias", "real")
	p.symlink("absolute", "/real")
	p.symlink("turns/into-link", "../etc")

	p.file("hole", "begin", 0o600)
	p.must(os.Truncate(p.at("hole"), s.sparse))
	f, err := os.OpenFile(p.at("hole"), os.O_WRONLY, 0)
	p.must(err)
	_, err = f.WriteAt([]byte("middle"), s.sparse/2)
	p.must(err)
	p.must(f.Close())
	for i := range s.files {
		p.file(fmt.Sprintf("many/%03d/%d", i/500, i), strconv.Itoa(i), 0o644)
	}
}

// names are such as few people think of.
func (p plant) names() {
	for _, name := range []string{
		" leading and trailing ", "new\nline", "tab\tulator", "back\\slash", "quote\"'", "-rf", "*", "...", "ünïcödé", "\xff\xfe no text",
		strings.Repeat("n", 255), "#!", "a:b", "wh.", ".whatever", "escape\x1b[0m",
	} {
		p.file("odd/"+name, name, 0o644)
	}
	p.file("deep/"+strings.Repeat("directory/", 40)+strings.Repeat("l", 150), "", 0o644)
	p.symlink("odd/dangling", "/not/there")
	p.symlink("odd/long", strings.Repeat("long/", 200))
	p.symlink("odd/self", "self")
	p.must(os.Lchown(p.at("odd/self"), 1000, 1001))
	for path, seconds := range map[string]int64{"odd/epoch": 0, "odd/future": 1 << 31, "odd/far": 7_000_000_000} {
		p.file(path, "", 0o644)
		p.must(os.Chtimes(p.at(path), time.Time{}, time.Unix(seconds, 0)))
	}
}

// attributes are extended ones.
func (p plant) attributes() {
	p.file("attributes/file", "", 0o644)
	for name, value := range map[string]string{
		"user.text": "hello", "user.empty": "", "user.binary": "\x00\x01\xff=\n", "user.big": strings.Repeat("x", 2000), "trusted.mine": "1",
	} {
		p.must(unix.Setxattr(p.at("attributes/file"), name, []byte(value), 0))
	}
	p.must(unix.Setxattr(p.at("attributes"), "user.of.directory", []byte("yes"), 0))
}

// second changes what the first layer holds: umoci finds out what, and writes whiteouts.
func (p plant) second() {
	p.t.Helper()
	for _, path := range []string{"gone/file", "gone/dir", "turns/into-file", "turns/into-dir", "turns/into-link", "bin/c"} {
		p.must(os.RemoveAll(p.at(path)))
	}
	p.file("turns/into-file", "a file now", 0o600)
	p.file("turns/into-dir/x", "in a directory now", 0o600)
	p.dir("turns/into-link", 0o700)
	p.link("links/of-second", "links/b")
	p.file("upper/a", "two names in the upper layer", 0o644)
	p.link("upper/b", "upper/a")
	p.must(unix.Chmod(p.at("bin/su"), 0o755))
}

// writeRawLayer writes what umoci would never write by itself: links to files of other layers, files below symbolic links
// to directories, and one that tries to be outside of the root.
func writeRawLayer(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	when := time.Unix(1_700_000_000, 0)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeLink, Name: "links/across", Linkname: "links/a", Mode: 0o644, ModTime: when},
		{Typeflag: tar.TypeLink, Name: "owners/across", Linkname: "owners/3", Mode: 0o600, ModTime: when},
		{Typeflag: tar.TypeReg, Name: "alias/through-link", Mode: 0o640, Uid: 7, Gid: 8, ModTime: when},
		{Typeflag: tar.TypeReg, Name: "absolute/through-absolute-link", Mode: 0o640, ModTime: when},
		{Typeflag: tar.TypeReg, Name: "../../../real/from-below-the-root", Mode: 0o600, ModTime: when},
		{Typeflag: tar.TypeReg, Name: "odd/.wh.self", ModTime: when},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
