package bundle

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/kernel"
)

// KernelDir is where Fetch puts the kernel that a bundle brings, in the staging directory.
const KernelDir = "kernel"

// kernelSuffix is how many digits of its digest are in the name of a kernel that came with a bundle.
const kernelSuffix = 8

// adoptedName is what a kernel that came with a bundle is called on this host. It never is the name of a kernel that
// banger knows how to get from its distribution: a bundle vouches for its own kernel and for no other.
func adoptedName(name string, p Part) string {
	suffix := "-" + p.SHA256[:kernelSuffix]
	return strings.TrimSuffix(name, suffix) + suffix // it may have come with a bundle before
}

// adopt checks the kernel that was unpacked to dir and makes it one of this host: named and identified by what it was
// verified with, the digest of its part, and not by what its own manifest says.
func adopt(dir string, p Part, name, arch, from string) error {
	m, err := kernel.Load(dir)
	if err != nil {
		// Load means a directory of the store, and hints at repairing that.
		return fault.New(fault.Invalid, "its manifest.json cannot be used by this banger: %s", last(err))
	}
	if m.Arch != arch {
		return fault.New(fault.Invalid, "it is for %.40q, the bundle for %s", m.Arch, arch)
	}
	if err := checkTexts(m); err != nil {
		return err
	}
	if err := checkFiles(dir, m); err != nil {
		return err
	}
	m.Name, m.Digest, m.Source = adoptedName(name, p), "sha256:"+p.SHA256, from
	m.Created = time.Now().UTC().Truncate(time.Second)
	return atomicfile.WriteJSON(filepath.Join(dir, kernel.ManifestFile), m)
}

// last is the innermost message of an error.
func last(err error) string {
	text := err.Error()
	if _, tail, ok := strings.Cut(text, ".json: "); ok {
		return tail
	}
	return text
}

// checkTexts looks at what of a foreign manifest is shown to people or used as a file name.
func checkTexts(m kernel.Manifest) error {
	texts := append([]string{m.Name, m.Version, m.Package, m.PackageVersion, m.Origin, m.Source}, m.Missing...)
	for _, text := range append(texts, m.Unknown...) {
		if len(text) > 4096 || strings.ContainsFunc(text, unicode.IsControl) {
			return fault.New(fault.Invalid, "its manifest.json has %.80q for a text", text)
		}
	}
	module := regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	for _, name := range m.BootModules {
		if !module.MatchString(name) {
			return fault.New(fault.Invalid, "its manifest.json names a module %.80q", name)
		}
	}
	if len(m.BootModules) > maxKernelFiles || len(m.Missing)+len(m.Unknown) > maxKernelFiles {
		return fault.New(fault.Invalid, "its manifest.json has too long a list")
	}
	return nil
}

// checkFiles looks for what the manifest says is there.
func checkFiles(dir string, m kernel.Manifest) error {
	want := []string{kernel.ImageFile, kernel.ModulesFile}
	for _, name := range m.BootModules {
		want = append(want, filepath.Join(kernel.BootDir, name+".ko"))
	}
	if m.Initrd {
		want = append(want, kernel.InitrdFile)
	}
	for _, name := range want {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Size() == 0 {
			return fault.New(fault.Invalid, "it has no %s", name)
		}
	}
	return checkMagic(filepath.Join(dir, kernel.ModulesFile))
}

// checkMagic looks whether the file is an ext4 file system, as the guest will mount it.
func checkMagic(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [2]byte
	if _, err := f.ReadAt(magic[:], 1024+56); err != nil || magic != [2]byte{0x53, 0xef} {
		return fault.New(fault.Invalid, "%s is not an ext4 file system", filepath.Base(file))
	}
	return nil
}

// origin says where an adopted kernel came from.
func origin(bundle string) string { return fmt.Sprintf("bundle:%s", bundle) }
