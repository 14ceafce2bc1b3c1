package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/source"
	"banger/internal/kernel"
	"banger/internal/progress"
	"banger/internal/signature"
	"banger/internal/transfer"
)

func newKey(t testing.TB) signature.SecretKey {
	t.Helper()
	k, err := signature.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// signedBundle is a bundle with its signature.
func signedBundle(t *testing.T, k signature.SecretKey, kernel string) string {
	t.Helper()
	path := makeBundle(t, kernel)
	if _, err := signature.SignFile(t.Context(), path, k); err != nil {
		t.Fatal(err)
	}
	return path
}

// quick is a client that tries again at once.
func quick() *transfer.Client {
	return &transfer.Client{Stall: time.Minute, Backoff: []time.Duration{time.Millisecond}}
}

// fetch reads a whole tree as a pull does, and removes what was temporary.
func fetchAll(t *testing.T, s Source, req source.Request) (source.Tree, []byte, error) {
	t.Helper()
	if req.Staging == "" {
		req.Staging = t.TempDir()
	}
	if req.Arch == "" {
		req.Arch = "amd64"
	}
	tree, err := s.Fetch(t.Context(), req)
	var data []byte
	if err == nil {
		data, err = io.ReadAll(tree.Tar)
		if closeErr := tree.Tar.Close(); closeErr != nil {
			t.Error(closeErr)
		}
	}
	for range 2 {
		if err := s.Remove(t.Context(), req.Staging); err != nil {
			t.Error(err)
		}
	}
	return tree, data, err
}

func TestFetchFromAWebServer(t *testing.T) {
	k := newKey(t)
	path := signedBundle(t, k, "")
	sum := digest(t, path)
	plain := makeBundle(t, "")
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(path))))
	defer server.Close()
	unsigned := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(plain))))
	defer unsigned.Close()
	keys := []signature.Key{newKey(t).Public(), k.Public()}
	for name, tt := range map[string]struct {
		source Source
		req    source.Request
		class  fault.Class
		want   string // of the error; empty: it comes
		hint   string
	}{
		"configured key":  {Source{Keys: keys}, source.Request{}, "", "", ""},
		"given key":       {Source{}, source.Request{Keys: []string{k.Public().String()}}, "", "", ""},
		"sha256":          {Source{}, source.Request{SHA256: sum}, "", "", ""},
		"sha256 prefixed": {Source{}, source.Request{SHA256: "sha256:" + strings.ToUpper(sum)}, "", "", ""},
		"sha256 unsigned": {Source{}, source.Request{Location: unsigned.URL + "/dev.tar.zst", SHA256: sum}, "", "", ""},
		"nothing":         {Source{}, source.Request{}, fault.Denied, "URL/dev.tar.zst comes from the network, no key is trusted and no sha256 was given", "banger config set trust.keys RW..."},
		"no signature":    {Source{Keys: keys}, source.Request{Location: unsigned.URL + "/dev.tar.zst"}, fault.Denied, unsigned.URL + "/dev.tar.zst has no signature beside it (dev.tar.zst.minisig), and no sha256 was given", "banger image pull --sha256 DIGEST '" + unsigned.URL + "/dev.tar.zst'"},
		"unknown key":     {Source{Keys: keys[:1]}, source.Request{}, fault.Denied, "URL/dev.tar.zst: dev.tar.zst.minisig was made with key " + k.Public().ID() + ", which is not trusted here", "banger image pull --key RW... 'URL/dev.tar.zst'"},
		"bad key":         {Source{}, source.Request{Keys: []string{"RWx"}}, fault.Invalid, `"RWx" is not a minisign public key: 56 characters that begin with RW`, "tail -n 1 minisign.pub"},
		"wrong sha256":    {Source{}, source.Request{SHA256: strings.Repeat("0", 64)}, fault.Denied, "URL/dev.tar.zst has sha256 " + sum + " and not " + strings.Repeat("0", 64), "curl -sSL 'URL/dev.tar.zst' | sha256sum"},
		"no sha256":       {Source{}, source.Request{SHA256: "abc"}, fault.Invalid, `"abc" is not a sha256: 64 hexadecimal digits`, "sha256sum FILE"},
		"not there":       {Source{}, source.Request{Location: server.URL + "/x.tar.zst", SHA256: sum}, fault.NotFound, "URL/x.tar.zst is not there (404 Not Found)", "curl -sSI 'URL/x.tar.zst'"},
		"wrong size":      {Source{}, source.Request{SHA256: sum, Size: 10}, fault.Invalid, "URL/dev.tar.zst has more than the 10 bytes it should have", "curl -sSI 'URL/dev.tar.zst'"},
		"too large":       {Source{Limits: Limits{Download: 10}}, source.Request{SHA256: sum}, fault.Invalid, "URL/dev.tar.zst is larger than the limit of 10B", "banger config show"},
		"other machine":   {Source{Keys: keys}, source.Request{Arch: "arm64"}, fault.Invalid, "bundle dev.tar.zst is for amd64 and not for arm64", "banger image pull --platform linux/amd64 'URL/dev.tar.zst'"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.req.Location == "" {
				tt.req.Location = server.URL + "/dev.tar.zst"
			}
			tt.source.Client, tt.req.Staging = quick(), t.TempDir()
			tree, data, err := fetchAll(t, tt.source, tt.req)
			if left, _ := os.ReadDir(tt.req.Staging); len(left) > 0 {
				t.Errorf("left in staging: %v", left)
			}
			if tt.want == "" {
				if err != nil || !bytes.Equal(data, rootfs(t)) || tree.Origin != tt.req.Location || tree.Kernel != "debian-bookworm" || tree.Arch != "amd64" || tree.Digest == "" {
					t.Errorf("%d bytes, %+v, %v", len(data), tree, err)
				}
				return
			}
			at := func(text string) string { return strings.ReplaceAll(text, "URL", server.URL) }
			if err == nil || !fault.Is(err, tt.class) || err.Error() != at(tt.want) || fault.HintOf(err) != at(tt.hint) {
				t.Errorf("%s: %v\nwant %s\nhint %s", fault.ClassOf(err), err, at(tt.want), fault.HintOf(err))
			}
		})
	}
}

func digest(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// One flipped byte anywhere in the file: refused before it is looked at.
func TestOneFlippedByteIsRefused(t *testing.T) {
	k := newKey(t)
	path := signedBundle(t, k, "")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 5, len(good) / 2, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(path))))
		for _, location := range []string{path, server.URL + "/dev.tar.zst"} {
			_, _, err := fetchAll(t, Source{Keys: []signature.Key{k.Public()}, Client: quick()}, source.Request{Location: location})
			if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "is not what key "+k.Public().ID()+" has signed: it was changed") {
				t.Errorf("byte %d of %s: %v", at, location, err)
			}
		}
		server.Close()
	}
}

func TestNothingIsDownloadedThatCannotBeVerified(t *testing.T) {
	var bundles atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, ".minisig") {
			bundles.Add(1)
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	for _, keys := range [][]signature.Key{nil, {newKey(t).Public()}} {
		_, _, err := fetchAll(t, Source{Keys: keys, Client: quick()}, source.Request{Location: server.URL + "/b.tar.zst"})
		if !fault.Is(err, fault.Denied) || bundles.Load() != 0 {
			t.Errorf("%d requests for the bundle, %v", bundles.Load(), err)
		}
	}
}

func TestDownloadGoesOnWhereItBrokeOff(t *testing.T) {
	k := newKey(t)
	path := signedBundle(t, k, "")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var resumed atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, ".minisig"):
			http.ServeFile(w, r, path+".minisig")
		case r.Header.Get("Range") != "":
			resumed.Store(true)
			http.ServeFile(w, r, path)
		default:
			info, _ := os.Stat(path)
			w.Header().Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
			w.Header().Set("Content-Length", fmt.Sprint(len(good)))
			_, _ = w.Write(good[:len(good)/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	_, data, err := fetchAll(t, Source{Keys: []signature.Key{k.Public()}, Client: quick()}, source.Request{Location: server.URL + "/dev.tar.zst"})
	if err != nil || !bytes.Equal(data, rootfs(t)) || !resumed.Load() {
		t.Errorf("%d bytes, resumed %v, %v", len(data), resumed.Load(), err)
	}
}

func TestStalledServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write([]byte("x"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer func() {
		server.CloseClientConnections()
		server.Close()
	}()
	staging := t.TempDir()
	hasty := &transfer.Client{Stall: 300 * time.Millisecond, Backoff: []time.Duration{time.Millisecond}}
	_, _, err := fetchAll(t, Source{Client: hasty}, source.Request{Location: server.URL + "/b.tar.zst", SHA256: strings.Repeat("0", 64), Staging: staging})
	if !fault.Is(err, fault.Timeout) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(staging); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	cause := errors.New("given up")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err = Source{}.Fetch(ctx, source.Request{Location: server.URL + "/b.tar.zst", SHA256: strings.Repeat("0", 64), Staging: staging, Arch: "amd64",
		Progress: func(u progress.Update) {
			if u.Done == 1 {
				cancel(cause)
			}
		}})
	if !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestLocalFiles(t *testing.T) {
	k, other := newKey(t), newKey(t)
	signed, plain := signedBundle(t, k, ""), makeBundle(t, "")
	dir := t.TempDir()
	swapped := filepath.Join(dir, "swapped.tar.zst")
	for from, to := range map[string]string{plain: swapped} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, append(data, 0), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(signed+".minisig", swapped+".minisig"); err != nil {
		t.Fatal(err)
	}
	garbled := makeBundle(t, "")
	if err := os.WriteFile(garbled+".minisig", []byte("no signature"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := []signature.Key{k.Public()}
	id := k.Public().ID()
	for name, tt := range map[string]struct {
		source Source
		req    source.Request
		class  fault.Class
		want   string
	}{
		"signed":            {Source{Keys: keys}, source.Request{Location: signed}, "", ""},
		"unsigned":          {Source{Keys: keys}, source.Request{Location: plain}, "", ""},
		"unsigned, sha256":  {Source{}, source.Request{Location: plain, SHA256: digest(t, plain)}, "", ""},
		"unsigned, a key":   {Source{}, source.Request{Location: plain, Keys: []string{k.Public().String()}}, fault.Denied, plain + " has no signature beside it (dev.tar.zst.minisig)"},
		"unknown key":       {Source{Keys: []signature.Key{other.Public()}}, source.Request{Location: signed}, fault.Denied, signed + ": dev.tar.zst.minisig was made with key " + id + ", which is not trusted here"},
		"of another file":   {Source{Keys: keys}, source.Request{Location: swapped}, fault.Denied, swapped + ": swapped.tar.zst is not what key " + id + ` has signed: the signature is for another file, "dev.tar.zst"`},
		"garbled signature": {Source{Keys: keys}, source.Request{Location: garbled}, fault.Denied, garbled + ": dev.tar.zst.minisig is no minisign signature: minisign: invalid signature"},
		"wrong sha256":      {Source{}, source.Request{Location: plain, SHA256: strings.Repeat("1", 64)}, fault.Denied, plain + " has sha256 " + digest(t, plain) + " and not " + strings.Repeat("1", 64)},
		"missing":           {Source{}, source.Request{Location: dir + "/none"}, fault.NotFound, "there is no bundle " + dir + "/none"},
		"a directory":       {Source{}, source.Request{Location: dir}, fault.Invalid, dir + " is not a file"},
		"relative":          {Source{}, source.Request{Location: "dev.tar.zst"}, fault.Invalid, `"dev.tar.zst" is not an absolute path`},
	} {
		t.Run(name, func(t *testing.T) {
			_, data, err := fetchAll(t, tt.source, tt.req)
			if tt.want == "" {
				if err != nil || !bytes.Equal(data, rootfs(t)) {
					t.Errorf("%d bytes, %v", len(data), err)
				}
				return
			}
			if err == nil || !fault.Is(err, tt.class) || err.Error() != tt.want || fault.HintOf(err) == "" {
				t.Errorf("%s: %v\nwant %s\nhint %s", fault.ClassOf(err), err, tt.want, fault.HintOf(err))
			}
		})
	}
}

func TestFileThatChangesAfterItWasVerified(t *testing.T) {
	k := newKey(t)
	path := signedBundle(t, k, "")
	tree, err := Source{Keys: []signature.Key{k.Public()}}.Fetch(t.Context(), source.Request{Location: path, Staging: t.TempDir(), Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Tar.Close()
	touch(t, path)
	if _, err := io.ReadAll(tree.Tar); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "changed while it was read") {
		t.Error(err)
	}
}

// touch changes the file's time of change, which has the coarse clock of the kernel's ticks.
func touch(t *testing.T, path string) {
	t.Helper()
	var before, now unix.Stat_t
	if err := unix.Stat(path, &before); err != nil {
		t.Fatal(err)
	}
	for now = before; now.Ctim == before.Ctim; {
		if err := errors.Join(os.Chmod(path, 0o600), unix.Stat(path, &now)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKernelComesWithIt(t *testing.T) {
	original := kernelDir(t)
	path := makeBundle(t, original)
	staging := t.TempDir()
	tree, _, err := fetchAll(t, Source{}, source.Request{Location: path, Staging: staging})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(staging, KernelDir)
	m, err := kernel.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != tree.Kernel || !strings.HasPrefix(m.Name, "debian-bookworm-") || m.Digest == "sha256:0" || m.Version != "6.1" || m.Source != "bundle:"+path {
		t.Errorf("%+v, the image wants %s", m, tree.Kernel)
	}
	// Exported and brought in once more it is the same kernel.
	again := t.TempDir()
	if _, _, err := fetchAll(t, Source{}, source.Request{Location: makeBundle(t, dir), Staging: again}); err != nil {
		t.Fatal(err)
	}
	if twice, err := kernel.Load(filepath.Join(again, KernelDir)); err != nil || twice.Digest != m.Digest || twice.Name != m.Name {
		t.Errorf("%+v, %v", twice, err)
	}
	for _, name := range []string{"vmlinux", "boot/virtio_blk.ko"} {
		want, err := os.ReadFile(filepath.Join(original, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, kernel.ModulesFile))
	if err != nil || info.Size() != ext4.DefaultSize {
		t.Errorf("%v, %v", info, err)
	}
	if used, err := ext4.Usage(filepath.Join(dir, kernel.ModulesFile)); err != nil || used > 64<<10 {
		t.Errorf("the modules take %d bytes, %v", used, err)
	}
	if left, _ := os.ReadDir(staging); len(left) != 1 {
		t.Errorf("staging: %v", left)
	}
}

func TestBadKernels(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"no image":      {func(t *testing.T, dir string) { remove(t, dir, "vmlinux") }, "kernel: it has no vmlinux"},
		"no module":     {func(t *testing.T, dir string) { remove(t, dir, "boot/virtio_blk.ko") }, "kernel: it has no boot/virtio_blk.ko"},
		"no tree":       {func(t *testing.T, dir string) { remove(t, dir, "modules.ext4") }, "kernel: it has no modules.ext4"},
		"no ext4":       {func(t *testing.T, dir string) { put(t, dir, "modules.ext4", "hello") }, "kernel: modules.ext4 is not an ext4 file system"},
		"layout":        {edit(func(m *kernel.Manifest) { m.Layout = 99 }), "kernel: its manifest.json cannot be used by this banger: kernel in DIR has layout 99, this banger needs 1"},
		"architecture":  {edit(func(m *kernel.Manifest) { m.Arch = "arm64" }), `kernel: it is for "arm64", the bundle for amd64`},
		"terminal":      {edit(func(m *kernel.Manifest) { m.Version = "\x1b[2J" }), `kernel: its manifest.json has "\x1b[2J" for a text`},
		"module's path": {edit(func(m *kernel.Manifest) { m.BootModules = []string{"../../x"} }), `kernel: its manifest.json names a module "../../x"`},
		"not json":      {func(t *testing.T, dir string) { put(t, dir, "manifest.json", "hello") }, "kernel: its manifest.json cannot be used by this banger: invalid character 'h' looking for beginning of value"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := kernelDir(t)
			tt.spoil(t, dir)
			staging := t.TempDir()
			root, kern := file(RootfsName, rootfs(t)), file(KernelName, rawKernel(t, dir))
			path := filepath.Join(t.TempDir(), "b.tar.zst")
			if err := os.WriteFile(path, pack(t, describe(t, nil, root, kern), root, kern), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := fetchAll(t, Source{}, source.Request{Location: path, Staging: staging})
			want := strings.ReplaceAll(tt.want, "DIR", filepath.Join(staging, KernelDir))
			if err == nil || err.Error() != want || !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v\nwant %s", fault.ClassOf(err), err, want)
			}
		})
	}
}

// rawKernel is a kernel part with the manifest as it is, which packKernel would not make.
func rawKernel(t *testing.T, dir string) []byte {
	t.Helper()
	files, err := kernelFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		if err := packFile(t.Context(), tw, filepath.Join(dir, f.name), f); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func edit(change func(*kernel.Manifest)) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		m, err := kernel.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		change(&m)
		if err := atomicfile.WriteJSON(filepath.Join(dir, kernel.ManifestFile), m); err != nil {
			t.Fatal(err)
		}
	}
}
