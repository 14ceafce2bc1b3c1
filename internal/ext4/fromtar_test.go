package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/diskcopy"
	"banger/internal/fault"
)

// file is an entry of a test's tar stream.
type file struct {
	tar.Header
	body string
}

// archive writes a tar stream of the files.
func archive(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		hdr := f.Header
		hdr.Size = int64(len(f.body))
		if hdr.ModTime.IsZero() && hdr.Typeflag != tar.TypeXGlobalHeader {
			hdr.ModTime = time.Unix(1700000000, 0)
		}
		if err := tw.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tool returns the path of a program of e2fsprogs, which the tests need as much as the package does.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := findTool(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// fsck fails the test unless e2fsck finds nothing to mend.
func fsck(t testing.TB, path string) {
	t.Helper()
	if out, err := exec.Command(tool(t, "e2fsck"), "-fn", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

// debugfs runs one command of debugfs on the image.
func debugfs(t testing.TB, path, command string) string {
	t.Helper()
	out, err := exec.Command(tool(t, "debugfs"), "-R", command, path).Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v", command, err)
	}
	return string(out)
}

const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw=ep

func sample() []file {
	long := strings.Repeat("d", 120) + "/" + strings.Repeat("f", 200)
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	return []file{
		{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}},
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o751, Uid: 3}},
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "./dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./home/banger/", Mode: 0o700, Uid: 1000, Gid: 1000}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "./home/banger/f", Mode: 0o4640, Uid: 100000, Gid: 70000}, body: "hello"},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "./usr/bin/ping", Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.note": "n", "SCHILY.acl.access": "ignored",
			"SCHILY.xattr.system.other": "ignored", "SCHILY.xattr.unknown": "ignored",
			"SCHILY.xattr.system.posix_acl_access": acl,
		}}, body: strings.Repeat("p", 9000)},
		{Header: tar.Header{Typeflag: tar.TypeLink, Name: "./usr/bin/ping4", Linkname: "./usr/bin/ping"}},
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "usr/bin"}},
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "./far", Linkname: strings.Repeat("x/", 100)}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "./run/fifo", Mode: 0o600}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "./" + long, Mode: 0o600}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "./etc/.wh.gone", Mode: 0o600}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "../../escape", Mode: 0o600}, body: "e"},
	}
}

func TestFromTarKeepsWhatTheStreamSays(t *testing.T) {
	data := archive(t, sample()...)
	path := filepath.Join(t.TempDir(), "rootfs.ext4")
	res, err := FromTar(t.Context(), bytes.NewReader(data), path, Options{Label: "banger-image"})
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, path)
	sum := sha256.Sum256(data)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	used, err := Usage(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Result{Used: used, Read: uint64(len(data)), Entries: 12, Digest: "sha256:" + hex.EncodeToString(sum[:])}
	if diff := cmp.Diff(want, res); diff != "" {
		t.Error(diff)
	}
	if info.Size() != DefaultSize || used > 1<<20 || info.Mode().Perm() != 0o600 {
		t.Errorf("size %d, used %d, mode %v", info.Size(), used, info.Mode())
	}
	long := "/" + strings.Repeat("d", 120) + "/" + strings.Repeat("f", 200)
	for _, tc := range []struct{ command, want string }{
		{"stat /", "Mode:  0751"},
		{"stat /dev/null", "Device major/minor number: 01:03"},
		{"stat /home/banger", "Mode:  0700"},
		{"stat /home/banger/f", "User: 100000   Group: 70000"},
		{"stat /home/banger/f", "Mode:  04640"},
		{"cat /home/banger/f", "hello"},
		{"stat /usr/bin/ping4", "Links: 2"},
		{"stat /usr/bin/ping4", "mtime: 0x6553f100"},
		{"stat /usr/bin/ping4", "ctime: 0x6553f100"},
		{"ea_get -x /usr/bin/ping security.capability", "01 00 00 02 00 20 00 00"},
		{"ea_get /usr/bin/ping user.note", "n"},
		{"ea_get -x /usr/bin/ping system.posix_acl_access", "02 00 05 00 e8 03 00 00 04 00 05 00"},
		{"stat /bin", "Fast link dest: \"usr/bin\""},
		{"stat /far", "Type: symlink"},
		{"stat /run/fifo", "Type: FIFO"},
		{"stat " + long, "Type: regular"},
		{"stat /etc/.wh.gone", "Type: regular"},
		{"cat /escape", "e"},
		{"show_super_stats -h", "banger-image"},
		{"show_super_stats -h", "sha-derived UUID"},
	} {
		if tc.want == "sha-derived UUID" {
			tc.want = hex.EncodeToString(sum[:4])
		}
		if got := debugfs(t, path, tc.command); !strings.Contains(got, tc.want) {
			t.Errorf("%s: no %q in\n%s", tc.command, tc.want, got)
		}
	}
}

func TestFromTarIsDeterministic(t *testing.T) {
	data := archive(t, sample()...)
	var sums [2][32]byte
	for i := range sums {
		path := filepath.Join(t.TempDir(), "x")
		if _, err := FromTar(t.Context(), bytes.NewReader(data), path, Options{Size: 64 << 20}); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(content)
	}
	if sums[0] != sums[1] {
		t.Error("the same stream gave two different images")
	}
}

func TestFromTarBadStreams(t *testing.T) {
	reg := func(name string) file { return file{Header: tar.Header{Typeflag: tar.TypeReg, Name: name}, body: "x"} }
	good := archive(t, sample()...)
	tail := bytes.Repeat([]byte{0}, 1024)
	if !bytes.HasSuffix(good, tail) {
		t.Fatal("no end marker")
	}
	for name, tc := range map[string]struct {
		data    []byte
		size    uint64
		class   fault.Class
		message string
	}{
		"empty":               {nil, 0, fault.Invalid, "cut off"},
		"no end marker":       {good[:len(good)-1024], 0, fault.Invalid, "cut off"},
		"half an end marker":  {good[:len(good)-512], 0, fault.Invalid, "cut off"},
		"cut in a file":       {good[:len(good)-1024-512-200], 0, fault.Invalid, "cut off"},
		"not a tar":           {bytes.Repeat([]byte("no tar"), 1000), 0, fault.Invalid, "tar stream"},
		"goes on":             {append(bytes.Clone(good), make([]byte, maxTrailer+1)...), 0, fault.Invalid, "goes on"},
		"twice":               {archive(t, reg("a"), reg("a")), 0, fault.Invalid, "overwrite"},
		"file as directory":   {archive(t, reg("a"), reg("a/b")), 0, fault.Invalid, "path not found"},
		"link to nothing":     {archive(t, file{Header: tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "b"}}), 0, fault.Invalid, "not found"},
		"unknown type":        {archive(t, file{Header: tar.Header{Typeflag: 'Z', Name: "a"}}), 0, fault.Invalid, "unknown type"},
		"long name":           {archive(t, reg(strings.Repeat("n", 256))), 0, fault.Invalid, "256 bytes"},
		"deep path":           {archive(t, reg(strings.Repeat("n/", 3000)+"f")), 0, fault.Invalid, "bad path"},
		"big owner":           {archive(t, file{Header: tar.Header{Typeflag: tar.TypeDir, Name: "a", Uid: 1 << 33}}), 0, fault.Invalid, "owner"},
		"does not fit":        {archive(t, file{Header: tar.Header{Typeflag: tar.TypeReg, Name: "a"}, body: strings.Repeat("x", 3<<20)}), 1 << 20, fault.Exhausted, "do not fit"},
		"malformed acl":       {archive(t, file{Header: tar.Header{Typeflag: tar.TypeDir, Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_access": "abc"}}}), 0, fault.Invalid, "access control"},
		"root as a file":      {archive(t, file{Header: tar.Header{Typeflag: tar.TypeReg, Name: "."}}), 0, fault.Invalid, "root must be"},
		"nameless attribute":  {archive(t, file{Header: tar.Header{Typeflag: tar.TypeDir, Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.user.": "v"}}}), 0, fault.Invalid, "bad name"},
		"attribute too large": {archive(t, file{Header: tar.Header{Typeflag: tar.TypeDir, Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.user.big": strings.Repeat("v", 5000)}}}), 0, fault.Invalid, "no room"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x")
			_, err := FromTar(t.Context(), bytes.NewReader(tc.data), path, Options{Size: tc.size})
			if fault.ClassOf(err) != tc.class || !strings.Contains(fmt.Sprint(err), tc.message) {
				t.Errorf("err = %v (%s), want %s with %q", err, fault.ClassOf(err), tc.class, tc.message)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Error("a partial file is left")
			}
		})
	}
}

func TestFromTarOptions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	for _, opt := range []Options{{Size: maxSize + 1}, {Label: "longer than sixteen"}} {
		if _, err := FromTar(t.Context(), bytes.NewReader(nil), path, opt); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", opt, err)
		}
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FromTar(t.Context(), bytes.NewReader(archive(t)), path, Options{}); err == nil {
		t.Error("an existing file was overwritten")
	}
	if data, _ := os.ReadFile(path); string(data) != "mine" {
		t.Error("an existing file was removed")
	}
}

// TestFromTarCancelled ends a conversion whose sender has stopped sending.
func TestFromTarCancelled(t *testing.T) {
	cause := errors.New("the user gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	pr, pw := io.Pipe()
	data := archive(t, sample()...)
	go func() {
		_, _ = pw.Write(data[:len(data)/2])
		cancel(cause)
	}()
	path := filepath.Join(t.TempDir(), "x")
	start := time.Now()
	_, err := FromTar(ctx, pr, path, Options{})
	if !errors.Is(err, cause) || time.Since(start) > time.Minute {
		t.Errorf("err = %v after %v", err, time.Since(start))
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("a partial file is left")
	}
}

// TestFromTarSenderFails expects the sender's own error, not the converter's complaint about it.
func TestFromTarSenderFails(t *testing.T) {
	want := fault.New(fault.Unavailable, "the mirror is gone").WithHint("banger doctor")
	pr, pw := io.Pipe()
	data := archive(t, sample()...)
	go func() {
		_, _ = pw.Write(data[:len(data)-1024])
		pw.CloseWithError(want)
	}()
	_, err := FromTar(t.Context(), pr, filepath.Join(t.TempDir(), "x"), Options{})
	if !errors.Is(err, want) || fault.HintOf(err) != "banger doctor" || !fault.Is(err, fault.Unavailable) {
		t.Errorf("err = %v", err)
	}
}

// TestFromTarIdentity expects what is known beforehand in place of the digest.
func TestFromTarIdentity(t *testing.T) {
	data := archive(t, sample()...)
	uuid := func(opt Options) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "x")
		res, err := FromTar(t.Context(), bytes.NewReader(data), path, opt)
		if err != nil {
			t.Fatal(err)
		}
		if res.Digest != "" {
			t.Errorf("digest %q", res.Digest)
		}
		fsck(t, path)
		_, after, _ := strings.Cut(debugfs(t, path, "show_super_stats -h"), "UUID:")
		id, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
		return id
	}
	first, same, other := uuid(Options{Identity: "a"}), uuid(Options{Identity: "a", Temporary: true}), uuid(Options{Identity: "b"})
	if first != same || first == other || strings.HasPrefix(first, "00000000") {
		t.Errorf("volumes %s, %s, %s", first, same, other)
	}
}

// TestFromTarZerosAreHoles expects zeros to be there for the guest and to take nothing on the host.
func TestFromTarZerosAreHoles(t *testing.T) {
	const size = 700 << 20 // more than fit in the extents of an inode
	pr, pw := io.Pipe()
	go func() {
		tw := tar.NewWriter(pw)
		_ = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o600, Size: size})
		chunk := make([]byte, 1<<20)
		for i := range size / len(chunk) {
			if chunk[7000] = 0; i == 600 {
				chunk[7000] = 'x'
			}
			_, _ = tw.Write(chunk)
		}
		pw.CloseWithError(tw.Close())
	}()
	path := filepath.Join(t.TempDir(), "x")
	res, err := FromTar(t.Context(), pr, path, Options{Identity: "zeros", Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, path)
	if res.Used > 1<<20 {
		t.Errorf("it takes %d bytes", res.Used)
	}
	if got := debugfs(t, path, "stat /zeros"); !strings.Contains(got, fmt.Sprint("Size: ", size)) {
		t.Error(got)
	}
	out := filepath.Join(t.TempDir(), "zeros")
	debugfs(t, path, "dump /zeros "+out)
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, 600<<20+4096); err != nil || bytes.IndexByte(got, 'x') != 7000-4096 {
		t.Errorf("the only letter is lost, err %v", err)
	}
}

// TestFromTarBeginsAnew takes a stream that changes its mind.
func TestFromTarBeginsAnew(t *testing.T) {
	wrong := archive(t, file{Header: tar.Header{Typeflag: tar.TypeReg, Name: "wrong"}, body: strings.Repeat("w", 3<<20)})
	data := archive(t, sample()...)
	sum := sha256.Sum256(data)
	path := filepath.Join(t.TempDir(), "x")
	stream := io.MultiReader(bytes.NewReader(wrong[:len(wrong)-1024]), &onceAnew{}, bytes.NewReader(data))
	res, err := FromTar(t.Context(), stream, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, path)
	if res.Digest != "sha256:"+hex.EncodeToString(sum[:]) || res.Read != uint64(len(data)) || res.Used > 1<<20 {
		t.Errorf("%+v", res)
	}
	if got := debugfs(t, path, "ls /"); strings.Contains(got, "wrong") || !strings.Contains(got, "home") {
		t.Error(got)
	}
	twice := io.MultiReader(&onceAnew{}, &onceAnew{})
	if _, err := FromTar(t.Context(), twice, path+"2", Options{}); err == nil {
		t.Error("a stream began anew for ever")
	}
}

// onceAnew is a reader that says once that the stream begins anew.
type onceAnew struct{ said bool }

func (o *onceAnew) Read([]byte) (int, error) {
	if o.said {
		return 0, io.EOF
	}
	o.said = true
	return 0, ErrAnew
}

// TestFromTarManyFiles makes directories that are long, and some that are many.
func TestFromTarManyFiles(t *testing.T) {
	const long, many = 30000, 300
	pr, pw := io.Pipe()
	go func() {
		tw := tar.NewWriter(pw)
		for i := range long + many*20 {
			name := fmt.Sprintf("long/%s-%d", strings.Repeat("n", i%100), i)
			if i >= long {
				name = fmt.Sprintf("many/%d/%d", i%many, i)
			}
			_ = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(i % 3)})
			_, _ = io.WriteString(tw, "xy"[:i%3])
		}
		pw.CloseWithError(tw.Close())
	}()
	path := filepath.Join(t.TempDir(), "x")
	res, err := FromTar(t.Context(), pr, path, Options{Temporary: true})
	if err != nil || res.Entries != long+many*20 {
		t.Fatal(res, err)
	}
	fsck(t, path)
	for _, want := range []string{"long/" + strings.Repeat("n", 99) + "-29999", "many/299/35999"} {
		if got := debugfs(t, path, "stat "+want); !strings.Contains(got, "Type: regular") {
			t.Errorf("%s: %s", want, got)
		}
	}
}

// TestNoSpace fills a small file system; only root can mount one.
func TestNoSpace(t *testing.T) {
	dir := smallDisk(t, "1m")
	noise := make([]byte, 4<<20)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(noise)
	data := archive(t, file{Header: tar.Header{Typeflag: tar.TypeReg, Name: "a"}, body: string(noise)})
	// The sender never ends: the failure must not wait for it.
	pr, pw := io.Pipe()
	go func() { _, _ = pw.Write(data) }()
	path := filepath.Join(dir, "rootfs.ext4")
	_, err := FromTar(t.Context(), pr, path, Options{})
	if !fault.Is(err, fault.Exhausted) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "needed") {
		t.Errorf("err = %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	template := filepath.Join(t.TempDir(), "t")
	if err := Format(t.Context(), template, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), noise[:1<<20-8192], 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(template)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := diskcopy.From(t.Context(), src, filepath.Join(dir, "disk")); !fault.Is(err, fault.Exhausted) {
		t.Errorf("copy: %v", err)
	}
	if err := Format(t.Context(), filepath.Join(dir, "disk"), 1<<30); !fault.Is(err, fault.Exhausted) {
		t.Errorf("format: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// smallDisk mounts a tmpfs.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("this root user may not mount: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func FuzzFromTar(f *testing.F) {
	f.Add(archive(f, sample()...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x")
		_, err := FromTar(t.Context(), bytes.NewReader(data), path, Options{Size: 64 << 20, Temporary: true})
		if err == nil {
			fsck(t, path)
		} else if fault.ClassOf(err) == fault.Internal {
			t.Errorf("internal error for bad input: %v", err)
		}
	})
}
