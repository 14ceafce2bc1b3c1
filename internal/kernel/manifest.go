package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
)

// Names of the files in a kernel's directory.
const (
	ImageFile    = "vmlinux"       // what the VMM loads
	ModulesFile  = "modules.ext4"  // the kernel's whole modules tree, at the root of a read-only ext4
	InitrdFile   = "initrd"        // an initial RAM disk of the user's, only where Manifest.Initrd says so
	BootDir      = "boot"          // the modules of the initramfs, <name>.ko each, not compressed
	ManifestFile = "manifest.json" // Manifest; written last
)

// OriginImport is the Manifest.Origin of a kernel that Import has made.
const OriginImport = "import"

// Layout is the generation of such a directory. A directory of another generation has to be pulled again.
const Layout = 1

// Manifest says what a kernel's directory holds and where that came from.
type Manifest struct {
	Layout         int       `json:"layout"`
	Name           string    `json:"name"`                      // that it was pulled or imported as
	Version        string    `json:"version"`                   // the release, as uname -r prints it
	Arch           string    `json:"arch"`                      // Debian's name of it: amd64, arm64
	Package        string    `json:"package,omitempty"`         // that it was unpacked from; none for an imported kernel
	PackageVersion string    `json:"package_version,omitempty"` // that package's version
	Origin         string    `json:"origin,omitempty"`          // Entry.Origin or OriginImport
	Digest         string    `json:"digest"`                    // sha256:... of the package or packages, or of what was imported
	Source         string    `json:"source"`                    // where that was downloaded from, without credentials; the imported file
	BootModules    []string  `json:"boot_modules"`              // names in BootDir, without .ko, in load order
	Initrd         bool      `json:"initrd,omitempty"`          // there is an InitrdFile, which goes before banger's own
	Missing        []string  `json:"missing,omitempty"`         // what it lacks for banger, for people: "CONFIG_VIRTIO_MMIO (virtio devices)"
	Unknown        []string  `json:"unknown,omitempty"`         // what it may lack: nothing tells
	Created        time.Time `json:"created"`
}

// Lacks returns Missing and, after that, Unknown in short: each completes the sentence "it lacks".
func (m Manifest) Lacks() []string {
	const most = 3
	if len(m.Unknown) == 0 {
		return m.Missing
	}
	var names []string
	for _, text := range m.Unknown[:min(most, len(m.Unknown))] {
		name, _, _ := strings.Cut(text, " ")
		names = append(names, name)
	}
	list := strings.Join(names, ", ")
	if n := len(m.Unknown) - most; n > 0 {
		list += fmt.Sprintf(" and %d more", n)
	}
	return append(slices.Clone(m.Missing), "perhaps "+list+": nothing says what it was built with")
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
