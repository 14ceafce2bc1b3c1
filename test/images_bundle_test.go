package test

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"
)

// A bundle goes from one home to another by any web server, if a key of the configuration has signed it.
func TestImageBundleTravels(t *testing.T) {
	_, vars := pullHome(t)
	registry := startRegistry(t)
	work := t.TempDir()
	root := busyboxRoot(t, filepath.Join(work, "root"))
	newBuildah(t, work).push(root.root, registry+"/app:1", "--cmd", "/bin/cat /etc/alpine-release", "--env", "FROM=bundle")

	served := filepath.Join(work, "served")
	root.must(os.Mkdir(served, 0o755))
	file := filepath.Join(served, "app.tar.zst")
	must(t, vars, "image", "pull", "--name", "app", registry+"/app:1")
	must(t, vars, "image", "export", "app", "-o", file)
	public, private, err := minisign.GenerateKey(rand.Reader)
	root.must(err)
	sign := func(path string) []byte {
		t.Helper()
		bundle, err := os.ReadFile(path)
		root.must(err)
		// Signatures of today are over a hash of the file: Reader makes those.
		signer := minisign.NewReader(bytes.NewReader(bundle))
		if _, err := bytes.NewBuffer(nil).ReadFrom(signer); err != nil {
			t.Fatal(err)
		}
		root.must(os.WriteFile(path+".minisig", signer.Sign(private), 0o644))
		return bundle
	}
	bundle := sign(file)
	server := httptest.NewServer(http.FileServer(http.Dir(served)))
	defer server.Close()

	home, other := pullHome(t)
	before := listImages(t, other)
	url := server.URL + "/app.tar.zst"
	refused := func(what, message string, args ...string) {
		t.Helper()
		got := runBanger(t, other, append([]string{"image", "pull", url}, args...)...)
		t.Logf("%s: %s", what, got.stderr)
		if got.code != 246 && got.code != 240 || !strings.Contains(got.stderr, message) {
			t.Errorf("%s: exit code %d: %s", what, got.code, got.stderr)
		}
		undisturbed(t, home, other, before)
	}
	refused("no key", "key")
	must(t, other, "config", "set", "trust.keys", public.String())
	must(t, other, "daemon", "stop") // it reads its configuration when it starts

	damaged := bytes.Clone(bundle)
	damaged[len(damaged)/2] ^= 1
	root.must(os.WriteFile(file, damaged, 0o644))
	refused("one bit changed", "signature")
	refused("one bit changed, and its digest", "sha256", "--sha256", "0000000000000000000000000000000000000000000000000000000000000000")

	root.must(os.WriteFile(file, bundle, 0o644))
	answers(t, other, "app\n", "image", "pull", url)
	answers(t, other, "3.20.3\n", "vm", "run", "--rm", "--image", "app")
	answers(t, other, "bundle\n", "vm", "run", "--rm", "--image", "app", "--", "sh", "-c", "echo $FROM")
	nothingHalfMade(t, home, other)
}
