package oci

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/fault"
)

// TestCertificates pulls from a registry that has a certificate of its own and wants to see one.
func TestCertificates(t *testing.T) {
	b := newBoxed(t)
	secure := httptest.NewUnstartedServer(b.Config.Handler)
	secure.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	secure.StartTLS()
	defer secure.Close()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	secret, err := x509.MarshalPKCS8PrivateKey(secure.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	for name, tc := range map[string]struct {
		dir   string
		files map[string][]byte
		want  string // in the error; empty: none
		hint  string
	}{
		"both":           {"example.com:5000", map[string][]byte{"ca.crt": authority, "me.cert": authority, "me.key": key, "README": nil}, "", ""},
		"none":           {"example.com:5000", nil, "registry example.com:5000: its certificate is not trusted", "curl -v https://example.com:5000/v2/"},
		"of another":     {"example.com", map[string][]byte{"ca.crt": authority, "me.cert": authority, "me.key": key}, "is not trusted", "curl -v https://example.com:5000/v2/"},
		"no key":         {"example.com:5000", map[string][]byte{"me.cert": authority}, "certificates of registry example.com:5000: DIR/me.cert has no me.key beside it", "ls -l DIR"},
		"wrong key":      {"example.com:5000", map[string][]byte{"me.cert": authority, "me.key": authority}, "certificates of registry example.com:5000: me.cert: ", "ls -l DIR"},
		"no certificate": {"example.com:5000", map[string][]byte{"ca.crt": []byte("x")}, "DIR/ca.crt holds no certificate in PEM form", "openssl x509 -noout -in DIR/ca.crt"},
		"no client's":    {"example.com:5000", map[string][]byte{"ca.crt": authority}, "registry example.com:5000: no TLS connection", "curl -v https://example.com:5000/v2/"},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, tc.dir)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, data := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			opt := testOptions(t)
			opt.certs = []string{filepath.Join(parent, "missing"), parent}
			src := NewRegistry(opt)
			src.http.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, secure.Listener.Addr().String())
			}
			got, err := fetchAll(t, t.Context(), src, "example.com:5000/dev/box")
			if tc.want == "" {
				if err != nil || got.files["a"] != b.contents {
					t.Errorf("%d bytes, %v", len(got.files["a"]), err)
				}
				return
			}
			inDir := func(s string) string { return strings.ReplaceAll(s, "DIR", dir) }
			if err == nil || !strings.Contains(err.Error(), inDir(tc.want)) || fault.HintOf(err) != inDir(tc.hint) {
				t.Errorf("%v, hint %q", err, fault.HintOf(err))
			}
		})
	}
}
