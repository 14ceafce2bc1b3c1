package kernel

import (
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
)

// Names of the files in a kernel's directory.
const (
	ImageFile    = "vmlinux"       // what the VMM loads
	ModulesFile  = "modules.ext4"  // the kernel's whole modules tree, at the root of a read-only ext4
	BootDir      = "boot"          // the modules of the initramfs, <name>.ko each, not compressed
	ManifestFile = "manifest.json" // Manifest; written last
)

// Layout is the generation of such a directory. A directory of another generation has to be pulled again.
const Layout = 1

// Manifest says what a kernel's directory holds and where that came from.
type Manifest struct {
	Layout         int       `json:"layout"`
	Name           string    `json:"name"`            // of the catalog entry
	Version        string    `json:"version"`         // the release, as uname -r prints it
	Arch           string    `json:"arch"`            // Debian's name of it: amd64, arm64
	Package        string    `json:"package"`         // that it was unpacked from
	PackageVersion string    `json:"package_version"` // that package's version
	Digest         string    `json:"digest"`          // sha256:... of that package
	Source         string    `json:"source"`          // where that was downloaded from, without credentials
	BootModules    []string  `json:"boot_modules"`    // names in BootDir, without .ko, in load order
	Created        time.Time `json:"created"`
}

// Load reads the manifest of the kernel in dir.
func Load(dir string) (Manifest, error) {
	var m Manifest
	if err := atomicfile.ReadJSON(filepath.Join(dir, ManifestFile), &m); err != nil {
		class := fault.Internal
		if errors.Is(err, fs.ErrNotExist) {
			class = fault.NotFound
		}
		return Manifest{}, fault.Wrap(class, err, "kernel in %s", dir)
	}
	if m.Layout != Layout {
		name := m.Name
		if name == "" {
			name = Default
		}
		return Manifest{}, fault.New(fault.Conflict, "kernel in %s has layout %d, this banger needs %d", dir, m.Layout, Layout).
			WithHint("banger kernel pull %s", name)
	}
	return m, nil
}
