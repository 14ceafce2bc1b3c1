package oci

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"banger/internal/fault"
)

// certDirs are where docker and podman look for the certificates of registries; in them is a directory for each, called
// HOST or HOST:PORT. Those of the user come first.
func certDirs() (dirs []string) {
	if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs, filepath.Join(home, ".config", "containers", "certs.d"), filepath.Join(home, ".docker", "certs.d"))
	}
	return append(dirs, "/etc/containers/certs.d", "/etc/docker/certs.d")
}

// certified returns base, or one like it for a registry of which there are certificates: *.crt are those of authorities
// that are trusted beside the host's own, *.cert with *.key of the same name is what banger shows of itself. The first
// directory that has any counts. As with docker, they also go for where the registry leads to, such as its token server.
func certified(base *http.Transport, registry string, dirs []string) (*http.Transport, error) {
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	if registry != filepath.Base(registry) { // it is a name of a file then
		return base, nil
	}
	for _, parent := range dirs {
		dir := filepath.Join(parent, registry)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "certificates of registry %s", registry)
		}
		config, err := readCerts(dir, entries)
		if err != nil {
			return nil, fault.Context(err, "certificates of registry %s", registry)
		}
		if config == nil {
			continue
		}
		own := newTransport() // a Clone would share the connections of HTTP/2
		own.DialContext, own.TLSClientConfig = base.DialContext, config
		return own, nil
	}
	return base, nil
}

// readCerts reads one such directory. It returns nil when there is nothing in it.
func readCerts(dir string, entries []fs.DirEntry) (*tls.Config, error) {
	config, found := &tls.Config{MinVersion: tls.VersionTLS12}, false
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".crt":
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, unreadable(err, path)
			}
			if config.RootCAs == nil {
				if config.RootCAs, err = x509.SystemCertPool(); err != nil {
					config.RootCAs = x509.NewCertPool()
				}
			}
			if !config.RootCAs.AppendCertsFromPEM(data) {
				return nil, fault.New(fault.Invalid, "%s holds no certificate in PEM form", path).WithHint("openssl x509 -noout -in %s", path)
			}
		case ".cert":
			key := strings.TrimSuffix(path, ".cert") + ".key"
			pair, err := tls.LoadX509KeyPair(path, key)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fault.New(fault.Invalid, "%s has no %s beside it", path, filepath.Base(key)).WithHint("ls -l %s", dir)
			}
			if err != nil {
				return nil, unreadable(err, path)
			}
			config.Certificates = append(config.Certificates, pair)
		default:
			continue
		}
		found = true
	}
	if !found {
		return nil, nil
	}
	return config, nil
}

func unreadable(err error, path string) error {
	class := fault.Invalid
	if errors.Is(err, fs.ErrPermission) {
		class = fault.Denied
	}
	return fault.Wrap(class, err, "%s", filepath.Base(path)).WithHint("ls -l %s", filepath.Dir(path))
}
