// Package version says which build this is.
package version

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"runtime/debug"
	"strings"
	"sync"
)

// version is set by the Makefile (-ldflags -X); "dev" in a plain go build.
var version = "dev"

// String is the version for people: "v0.1.0", "94f3c42-dirty", "dev".
func String() string {
	if version != "dev" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 7 {
				return s.Value[:7]
			}
		}
	}
	return version
}

// Build identifies the running binary: the version and, since two builds of one version differ while it is worked on,
// the start of the binary's own build id. A client that finds a daemon of another build replaces it.
var Build = sync.OnceValue(func() string {
	return strings.TrimSpace(String() + "+" + binaryID())
})

// binaryID is cheap: the size and the modification time of the binary change with every build; its content is not read.
func binaryID() string {
	path, err := os.Executable()
	if err != nil {
		return "unknown"
	}
	info, err := os.Stat(path)
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256([]byte(path + info.ModTime().UTC().String()))
	return hex.EncodeToString(sum[:4])
}
