package image

import (
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/image/source"
)

// Names of the files in an image's directory.
const (
	RootfsFile   = "rootfs.ext4"   // the root file system, read-only, padded to the size that all images have
	ManifestFile = "manifest.json" // Manifest; written last
)

// Layout is the generation of such a directory. An image of another generation has to be pulled again.
const Layout = 1

// Manifest says what an image's directory holds and where that came from.
type Manifest struct {
	Layout  int           `json:"layout"`
	Name    string        `json:"name"`       // that it was pulled, built or registered as
	Digest  string        `json:"digest"`     // sha256:... that identifies the image: see Identity
	Source  string        `json:"source"`     // "debian:bookworm"
	Origin  string        `json:"origin"`     // where that came from, without credentials
	Arch    string        `json:"arch"`       // amd64, arm64
	Size    uint64        `json:"size_bytes"` // virtual
	Used    uint64        `json:"used_bytes"` // on the host; 0 when the file is not banger's
	Tar     uint64        `json:"tar_bytes"`  // of the tar stream that it was made from
	Entries int           `json:"entries"`    // files, directories, links
	Kernel  string        `json:"kernel"`     // default kernel reference
	Config  source.Config `json:"config"`
	Created time.Time     `json:"created"`

	Layers   []source.Layer `json:"layers,omitempty"`   // in the blob store, lowest first; none: it was made otherwise
	Upstream string         `json:"upstream,omitempty"` // digest by which the place of origin knows it
	External *External      `json:"external,omitempty"` // of a registered image; nil: the root file system is banger's own
}

// Rootfs is the path of the root file system of a managed image in dir. Manifest.Rootfs knows registered ones too.
func Rootfs(dir string) string { return filepath.Join(dir, RootfsFile) }

// Rootfs is the path of the root file system of the image whose directory is dir.
func (m Manifest) Rootfs(dir string) string {
	if m.External != nil {
		return m.External.Rootfs.Path
	}
	return Rootfs(dir)
}

// Load reads the manifest of the image in dir.
func Load(dir string) (Manifest, error) {
	var m Manifest
	switch err := atomicfile.ReadJSON(filepath.Join(dir, ManifestFile), &m); {
	case errors.Is(err, fs.ErrNotExist):
		return Manifest{}, fault.Wrap(fault.NotFound, err, "no image in %s", dir).WithHint("banger image list")
	case err != nil:
		return Manifest{}, fault.Context(err, "image in %s", dir)
	case m.Layout != Layout:
		name := m.Name
		if name == "" {
			name = Default
		}
		return Manifest{}, fault.New(fault.Conflict, "image in %s has layout %d, this banger needs %d", dir, m.Layout, Layout).
			WithHint("banger image pull %s", name)
	}
	return m, nil
}
