package build

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// project is a context that most tests of COPY use.
var project = []file{
	{name: "a.txt", data: "A"}, {name: "b.txt", data: "B", mode: 0o600}, {name: "run.sh", data: "R", mode: 0o755},
	{name: "dir/", mode: 0o750}, {name: "dir/x", data: "X"}, {name: "dir/sub/", mode: 0o700}, {name: "dir/sub/y", data: "Y"},
	{name: "dir/link", link: "x"}, {name: "todir", link: "dir"}, {name: "tofile", link: "dir/x"}, {name: "out", link: "/etc/passwd"},
	{name: "up", link: "../../../../etc/passwd"}, {name: "loop", link: "loop"}, {name: "hard", link: "=a.txt"}, {name: "sp ace[1]", data: "S"},
}

// base is a stage that COPY writes into.
var base = []file{
	{name: "etc/"}, {name: "etc/passwd", data: "root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"},
	{name: "etc/group", data: "root:x:0:\nstaff:x:50:\n"},
	{name: "usr/"}, {name: "usr/lib/", mode: 0o711, uid: 3}, {name: "lib", link: "usr/lib"}, {name: "abs", link: "/usr/lib"},
	{name: "dangling", link: "var/new/dir"}, {name: "f", data: "old", uid: 7}, {name: "d/"}, {name: "d/sub", link: "../usr"}, {name: "d/x/"},
}

func TestCopy(t *testing.T) {
	for _, tc := range []struct {
		name, text string // the text without FROM; in the stage of base if it begins with "BASE\n"
		ignore     string
		want       []string // without what base has
		err        string
	}{
		{name: "file to a name", text: "COPY b.txt /x/y", want: []string{"x/ 755 0:0", "x/y 600 0:0 B"}},
		{name: "file to a slash", text: "COPY b.txt /x/", want: []string{"x/ 755 0:0", "x/b.txt 600 0:0 B"}},
		{name: "file into the work directory", text: "WORKDIR /w\nCOPY a.txt .", want: []string{"w/ 755 0:0", "w/a.txt 644 0:0 A"}},
		{name: "files", text: "COPY a.txt run.sh /x/", want: []string{"x/ 755 0:0", "x/a.txt 644 0:0 A", "x/run.sh 755 0:0 R"}},
		{name: "directory means its contents", text: "COPY dir /x", want: []string{
			"x/ 755 0:0", "x/link -> x 0:0", "x/sub/ 700 0:0", "x/sub/y 644 0:0 Y", "x/x 644 0:0 X"}},
		{name: "directory to the root", text: "COPY dir/ /", want: []string{"link -> x 0:0", "sub/ 700 0:0", "sub/y 644 0:0 Y", "x 644 0:0 X"}},
		{name: "linked directory", text: "COPY todir/sub /x", want: []string{"x/ 755 0:0", "x/y 644 0:0 Y"}},
		{name: "linked file keeps the name of the link", text: "COPY tofile /x/", want: []string{"x/ 755 0:0", "x/tofile 644 0:0 X"}},
		{name: "wildcard", text: "COPY *.txt /x/", want: []string{"x/ 755 0:0", "x/a.txt 644 0:0 A", "x/b.txt 600 0:0 B"}},
		{name: "wildcard for directories", text: "COPY di?/s* /x/", want: []string{"x/ 755 0:0", "x/y 644 0:0 Y"}},
		{name: "wildcard that fits nothing", text: "COPY *.none a.txt /x/", want: []string{"x/ 755 0:0", "x/a.txt 644 0:0 A"}},
		{name: "odd name", text: `COPY ["sp ace[[]1]", "/x y"]`, want: []string{"x y 644 0:0 S"}},
		{name: "hard links stay", text: "COPY a.txt hard /x/", want: []string{"x/ 755 0:0", "x/a.txt 644 0:0 A", "x/hard = x/a.txt"}},
		{name: "chmod and chown by number", text: "COPY --chown=5 --chmod=640 dir /x", want: []string{
			"x/ 640 5:5", "x/link -> x 5:5", "x/sub/ 640 5:5", "x/sub/y 640 5:5 Y", "x/x 640 5:5 X"}},
		{name: "chmod by letters", text: "COPY --chmod=u=rwX,go= dir /x", want: []string{
			"x/ 755 0:0", "x/link -> x 0:0", "x/sub/ 700 0:0", "x/sub/y 600 0:0 Y", "x/x 600 0:0 X"}},
		{name: "chown by name", text: "BASE\nCOPY --chown=app:staff a.txt /x/", want: []string{"x/ 755 1000:50", "x/a.txt 644 1000:50 A"}},
		{name: "chown to the group of the account", text: "BASE\nCOPY --chown=app a.txt /", want: []string{"a.txt 644 1000:1001 A"}},
		{name: "chown group only", text: "BASE\nCOPY --chown=:staff a.txt /", want: []string{"a.txt 644 0:50 A"}},
		{name: "chown with a file that a step made", text: "COPY <<EOF /etc/passwd\nnew:x:9:8::/:\nEOF\nCOPY --chown=new a.txt /x", want: []string{
			"etc/ 755 0:0", "etc/passwd 644 0:0 new:x:9:8::/:\n", "x 644 9:8 A"}},
		{name: "excluded", text: "COPY --exclude=**/y --exclude=*ink dir /x", want: []string{"x/ 755 0:0", "x/sub/ 700 0:0", "x/x 644 0:0 X"}},
		{name: "excluded with an exception", text: "COPY --exclude=* --exclude=!sub/y dir /x", want: []string{"x/ 755 0:0", "x/sub/ 700 0:0", "x/sub/y 644 0:0 Y"}},
		{name: "excluded files of a wildcard", text: "COPY --exclude=b* *.txt /x/", want: []string{"x/ 755 0:0", "x/a.txt 644 0:0 A"}},
		{name: "parents", text: "COPY --parents dir/sub/y a.txt /x/", want: []string{
			"x/ 755 0:0", "x/a.txt 644 0:0 A", "x/dir/ 750 0:0", "x/dir/sub/ 700 0:0", "x/dir/sub/y 644 0:0 Y"}},
		{name: "parents from a point on", text: "COPY --parents dir/./*/y /x/", want: []string{"x/ 755 0:0", "x/sub/ 700 0:0", "x/sub/y 644 0:0 Y"}},
		{name: "parents that are not there", text: "COPY --parents dir/none /x/", err: "Dockerfile:2: COPY --parents dir/none /x/: dir/none is not in the build context"},
		{name: "bad patterns", text: "COPY [\"a[\", \"/x/\"]", err: "Dockerfile:2: COPY [\"a[\", \"/x/\"]: a[ is not a pattern"},
		{name: "heredoc", text: "COPY <<one <<two /x/\n1\none\n2\ntwo", want: []string{"x/ 755 0:0", "x/one 644 0:0 1\n", "x/two 644 0:0 2\n"}},
		{name: "later sources win", text: "COPY a.txt /x/f\nCOPY b.txt /x/f", want: []string{"x/ 755 0:0", "x/f 600 0:0 B"}},

		{name: "destination through a link", text: "BASE\nCOPY a.txt /lib/", want: []string{"usr/lib/a.txt 644 0:0 A"}},
		{name: "destination through an absolute link", text: "BASE\nCOPY dir/sub /abs/new", want: []string{"usr/lib/new/ 755 0:0", "usr/lib/new/y 644 0:0 Y"}},
		{name: "destination through a dangling link", text: "BASE\nCOPY a.txt /dangling/", want: []string{"var/ 755 0:0", "var/new/ 755 0:0", "var/new/dir/ 755 0:0", "var/new/dir/a.txt 644 0:0 A"}},
		{name: "existing directory keeps its owner and mode", text: "BASE\nCOPY dir/sub /usr/lib", want: []string{"usr/lib/y 644 0:0 Y"}},
		{name: "file replaces a file", text: "BASE\nCOPY b.txt /f", want: []string{"f 600 0:0 B"}},
		{name: "file without a slash into a directory", text: "BASE\nCOPY b.txt /usr", want: []string{"usr/b.txt 600 0:0 B"}},
		{name: "several into a directory without a slash", text: "BASE\nCOPY a.txt b.txt /usr", want: []string{"usr/a.txt 644 0:0 A", "usr/b.txt 600 0:0 B"}},
		{name: "file in the way of a directory", text: "BASE\nCOPY dir /f/x", err: "Dockerfile:3: COPY dir /f/x: /f is not a directory in the stage"},
		{name: "directory in the way of a file", text: "BASE\nCOPY dir /d", err: "Dockerfile:3: COPY dir /d: dir/sub is a directory, but not in the stage: RUN rm /d/sub before"},
		{name: "file cannot replace a directory", text: "BASE\nCOPY dir/x /d", err: "Dockerfile:3: COPY dir/x /d: /d/x is a directory in the stage: a file cannot replace it"},
		{name: "several to a name", text: "COPY a.txt b.txt /x", err: "Dockerfile:2: COPY a.txt b.txt /x: several files need a directory: write the destination as /x/"},
		{name: "unknown user", text: "BASE\nCOPY --chown=nobody a.txt /", err: "Dockerfile:3: COPY --chown=nobody a.txt /: no user is called nobody in /etc/passwd of the stage: use a number, or make the account before"},
		{name: "unknown group", text: "COPY --chown=0:g a.txt /", err: "Dockerfile:2: COPY --chown=0:g a.txt /: no group is called g in /etc/group of the stage: use a number, or make the group before"},

		{name: "not there", text: "COPY none /", err: "Dockerfile:2: COPY none /: none is not in the build context"},
		{name: "below a file", text: "COPY a.txt/b /", err: "Dockerfile:2: COPY a.txt/b /: a.txt/b is not in the build context"},
		{name: "ignored", text: "COPY dir/x /", ignore: "dir", err: "Dockerfile:2: COPY dir/x /: dir/x is not in the build context, because .dockerignore excludes it"},
		{name: "ignored directory", text: "COPY dir /", ignore: "dir", err: "Dockerfile:2: COPY dir /: dir is not in the build context, because .dockerignore excludes it"},
		{name: "ignored but for one", text: "COPY . /", ignore: "*\n!dir/sub/y", want: []string{"dir/ 750 0:0", "dir/sub/ 700 0:0", "dir/sub/y 644 0:0 Y"}},
		{name: "ignored in a wildcard", text: "COPY *.txt /x/", ignore: "b*", want: []string{"x/ 755 0:0", "x/a.txt 644 0:0 A"}},
		{name: "link out of the context", text: "COPY out /", err: "Dockerfile:2: COPY out /: out is a symbolic link to etc/passwd, which is not in the build context"},
		{name: "link far up", text: "COPY up /", err: "Dockerfile:2: COPY up /: up is a symbolic link to ../../../../etc/passwd, which is not in the build context"},
		{name: "dots lead nowhere", text: "COPY ../../../etc/passwd /", err: "Dockerfile:2: COPY ../../../etc/passwd /: ../../../etc/passwd is not in the build context"},
		{name: "link to itself", text: "COPY loop /", err: "Dockerfile:2: COPY loop /: too many symbolic links on the way to loop"},
		{name: "below, links are copied as they are", text: "COPY . /", ignore: "*\n!out\n!loop", want: []string{"loop -> loop 0:0", "out -> /etc/passwd 0:0"}},
		{name: "whiteout", text: "COPY a.txt /.wh.x", err: "Dockerfile:2: COPY a.txt /.wh.x: .wh.x cannot be in an image: a name with .wh. at its beginning means a deleted file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			b.images["base"] = Base{Layers: mustLayers(b.layer(base...))}
			text, from := tc.text, "FROM scratch\n"
			if rest, ok := strings.CutPrefix(text, "BASE\n"); ok {
				text, from = rest, "FROM base\n#\n"
			}
			out, err := b.build(context.Background(), from+text, contextDir(t, project...), ignoring(tc.ignore))
			if tc.err != "" {
				if err == nil || err.Error() != tc.err {
					t.Fatalf("error:\n got %v\nwant %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := b.tree(out.Layers)
			if strings.HasPrefix(from, "FROM base") {
				got = without(got, b.tree(b.images["base"].Layers))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

// without are the lines that are not among others.
func without(lines, others []string) []string {
	var out []string
	for _, l := range lines {
		known := false
		for _, o := range others {
			known = known || l == o
		}
		if !known {
			out = append(out, l)
		}
	}
	return out
}

func TestCopyKeepsTimes(t *testing.T) {
	b := newBench(t)
	out := b.mustBuild("FROM scratch\nWORKDIR /w/v\nCOPY dir sub/dir\nCOPY a.txt /new/a", contextDir(t, project...))
	want := map[string]string{
		".": "1970-01-01", "w": "1980-01-01", "w/v": "1980-01-01", "w/v/sub": "2020-02-02", "w/v/sub/dir": "2020-02-02",
		"w/v/sub/dir/x": "2020-02-02", "w/v/sub/dir/sub": "2020-02-02", "w/v/sub/dir/sub/y": "2020-02-02", "new": "2020-02-02", "new/a": "2020-02-02",
	}
	got := b.times(out.Layers)
	delete(got, "w/v/sub/dir/link") // its time is that of the test
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("times (-want +got):\n%s", diff)
	}
}

// A layer has the same bytes whenever and from wherever it is made.
func TestLayersAreReproducible(t *testing.T) {
	text := "FROM scratch\nCOPY a.txt b.txt dir /x/\nWORKDIR /w\nADD t.tar /\n"
	files := append(project[:0:0], file{name: "a.txt", data: "A"}, file{name: "b.txt", data: "B"}, file{name: "dir/"}, file{name: "dir/x", data: "X"},
		file{name: "t.tar", data: string(tarOf(t, file{name: "q/w", data: "W"}))})
	one, two := newBench(t), newBench(t)
	if diff := cmp.Diff(one.mustBuild(text, contextDir(t, files...)), two.mustBuild(text, contextDir(t, files...))); diff != "" {
		t.Errorf("the same build twice:\n%s", diff)
	}
}

func TestCopyFromStageKeepsOwners(t *testing.T) {
	b := newBench(t)
	b.images["base"] = Base{Layers: mustLayers(b.layer(
		file{name: "opt/", uid: 1, gid: 2}, file{name: "opt/tool", data: "T", mode: 0o4755, uid: 3, gid: 4}, file{name: "opt/same", link: "=opt/tool"},
		file{name: "opt/link", link: "/opt/tool"}, file{name: "bin", link: "opt"},
	))}
	out := b.mustBuild("FROM base AS a\nCOPY a.txt /opt/\nFROM scratch\nCOPY --from=a /bin /x\nCOPY --from=a /opt/link /y\nCOPY --from=base --chown=9 /opt/tool /z", contextDir(t, project...))
	want := []string{
		"x/ 755 0:0", "x/a.txt 644 0:0 A", "x/link -> /opt/tool 0:0", "x/same 4755 3:4 T", "x/tool = x/same", "y 4755 3:4 T", "z 4755 9:9 T",
	}
	if diff := cmp.Diff(want, b.tree(out.Layers)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	_, err := b.build(context.Background(), "FROM scratch\nCOPY --from=base /none /", "")
	if want := "Dockerfile:2: COPY --from=base /none /: none is not there"; err == nil || err.Error() != want || !fault.Is(err, fault.NotFound) {
		t.Errorf("a source that is not there: %v", err)
	}
}

func TestSpecialAndUnreadableFiles(t *testing.T) {
	b := newBench(t)
	dir := contextDir(t, file{name: "d/a", data: "A"})
	if err := syscall.Mkfifo(filepath.Join(dir, "d/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := b.mustBuild("FROM scratch\nCOPY d /", dir)
	if diff := cmp.Diff([]string{"a 644 0:0 A"}, b.tree(out.Layers)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if log := b.log(); !contains(log, "1 output d/pipe is left out: it is a socket, a pipe or a device") {
		t.Errorf("log: %q", log)
	}
	_, err := b.build(context.Background(), "FROM scratch\nCOPY d/pipe /", dir)
	if want := "Dockerfile:2: COPY d/pipe /: d/pipe is a socket, a pipe or a device"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if os.Getuid() == 0 { // who can read every file
		asNobody(t)
		return
	}
	if err := os.Chmod(filepath.Join(dir, "d/a"), 0); err != nil {
		t.Fatal(err)
	}
	_, err = b.build(context.Background(), "FROM scratch\nCOPY d/a /", dir)
	if want := "Dockerfile:2: COPY d/a /: d/a cannot be read: give yourself the right to, or name it in .dockerignore"; err == nil || err.Error() != want || !fault.Is(err, fault.Denied) {
		t.Errorf("%v, want %s", err, want)
	}
}

// asNobody runs the test once more, as a user without rights.
func asNobody(t *testing.T) {
	t.Helper()
	const nobody = 65534
	dir, err := os.MkdirTemp("/tmp", "bn")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "test"), self, 0o755), os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "tmp"), 0o700),
			os.Chown(filepath.Join(dir, "tmp"), nobody, nobody))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "test"), "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"), "HOME="+filepath.Join(dir, "tmp"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as a user without rights: %v\n%s", err, out)
	}
}

// Capabilities come along each time a file is copied, and count for the cache.
func TestCapabilities(t *testing.T) {
	dir := contextDir(t, file{name: "ping", data: "P"})
	name := filepath.Join(dir, "ping")
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	b := newBench(t)
	text := "FROM scratch\nCOPY ping /a\nCOPY ping /b\n"
	without := b.mustBuild(text, dir)
	if err := unix.Setxattr(name, "security.capability", []byte(capability), 0); err != nil {
		t.Skipf("capabilities cannot be set: %v", err)
	}
	with := b.mustBuild(text, dir)
	if cmp.Equal(with, without) {
		t.Error("a file with other capabilities is taken from the cache")
	}
	bb := &builder{opt: Options{Blobs: b.blobs, Scratch: b.dir}}
	tree, err := bb.openTree(t.Context(), with.Layers)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	for _, at := range []string{"/a", "/b"} {
		if n, err := tree.find(at); err != nil || n.xattrs["security.capability"] != capability {
			t.Errorf("%s: %+v %v", at, n, err)
		}
	}
}

// A context that somebody writes to must not become an image that is neither the old nor the new one.
func TestFileChangedWhileItIsRead(t *testing.T) {
	dir := contextDir(t, file{name: "a", data: strings.Repeat("a", 1<<20)})
	c, err := openContext(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	name := filepath.Join(dir, "a")
	for what, change := range map[string]func() error{
		"longer":   func() error { return os.WriteFile(name, make([]byte, 2<<20), 0o600) },
		"shorter":  func() error { return os.Truncate(name, 5) },
		"gone":     func() error { return os.Remove(name) },
		"a pipe":   func() error { return syscall.Mkfifo(name, 0o600) },
		"a link":   func() error { return os.Symlink("/etc/passwd", name) },
		"no rules": nil,
	} {
		os.Remove(name)
		if err := os.WriteFile(name, []byte("before"), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := c.find("/a")
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			if what == "a pipe" || what == "a link" {
				os.Remove(name)
			}
			if err := change(); err != nil {
				t.Fatal(err)
			}
		}
		err = n.sum(t.Context(), func(int64) {})
		if change == nil {
			if err != nil {
				t.Errorf("unchanged: %v", err)
			}
		} else if !fault.Is(err, fault.Conflict) || err.Error() != "a was changed while it was read: build again when nobody writes to it" {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The second reading, for the layer, is compared with the first.
	b := newBench(t)
	n := memoryNode("m", []byte("one"), 0o644)
	n.digest = strings.Repeat("0", 64)
	_, err = (&builder{opt: Options{Blobs: b.blobs}}).writeLayer(t.Context(), map[string]*node{"/m": n}, nil)
	if !fault.Is(err, fault.Conflict) {
		t.Errorf("other contents: %v", err)
	}
	if infos, err := b.blobs.List(); err != nil || len(infos) != 0 {
		t.Errorf("a layer that failed is in the store: %v %v", infos, err)
	}
}

func TestContextNotThere(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	for name, want := range map[string]fault.Class{"none": fault.NotFound, "file": fault.Invalid} {
		if name == "file" {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.build(t.Context(), "FROM scratch", filepath.Join(dir, name)); !fault.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.build(t.Context(), "FROM scratch\nCOPY a /", ""); err == nil || err.Error() != "Dockerfile:2: COPY a /: there is no build context to copy from" {
		t.Errorf("no context: %v", err)
	}
	b.mustBuild("FROM scratch\nCOPY <<a /\nx\na", "")
}
