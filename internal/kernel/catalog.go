package kernel

import (
	"fmt"
	"maps"
	"runtime"
	"slices"

	"banger/internal/fault"
	"banger/internal/nearest"
)

// Default is the name of the catalog entry that is used when nothing else is asked for.
const Default = "debian-bookworm"

// Entry is a kernel that can be pulled by name.
type Entry struct {
	Name        string
	Description string
	Codename    string            // of the Debian release that has it
	Backports   bool              // it is in that release's backports
	Arch        string            // Debian's name; empty: this host's
	Package     map[string]string // meta package for each Debian architecture; it depends on the newest kernel
}

// Origin says for people which part of which archive an entry comes from: "debian:trixie-backports".
func (e Entry) Origin() string {
	if e.Backports {
		return "debian:" + e.Codename + "-backports"
	}
	return "debian:" + e.Codename
}

// Catalog returns every kernel that banger knows how to pull, the default first. Those of the host's architecture have
// the short names; after them come those of other architectures, "debian-bookworm-arm64".
func Catalog() []Entry { return catalog(runtime.GOARCH) }

// catalog is Catalog on a host of that architecture, of which Debian and Go have the same names.
func catalog(host string) []Entry {
	meta := map[string]string{"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"}
	native := []Entry{
		{Name: Default, Description: "Debian 12 (bookworm) cloud kernel, Linux 6.1", Codename: "bookworm"},
		{Name: "debian-trixie", Description: "Debian 13 (trixie) cloud kernel, Linux 6.12", Codename: "trixie"},
		{Name: "debian-bookworm-backports", Description: "newer cloud kernel for Debian 12, from its backports", Codename: "bookworm", Backports: true},
		{Name: "debian-trixie-backports", Description: "newer cloud kernel for Debian 13, from its backports", Codename: "trixie", Backports: true},
	}
	for i := range native {
		native[i].Package = meta
	}
	all := native
	for _, arch := range slices.Sorted(maps.Keys(meta)) {
		for _, e := range native {
			e.Arch = arch
			e.Name += "-" + arch
			e.Description += ", for " + arch
			if arch != host {
				all = append(all, e)
			}
		}
	}
	return all
}

// Find returns the catalog entry of that name. The architecture may be added to any name, "debian-trixie-amd64", so
// that it means the same on every host.
func Find(name string) (Entry, error) {
	var names []string
	for _, e := range Catalog() {
		if e.Name == name || e.Arch == "" && e.Name+"-"+runtime.GOARCH == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	f := fault.New(fault.NotFound, "no kernel is called %q", name).WithHint("banger kernel catalog")
	if near := nearest.Of(name, names); near != "" {
		f.Message += fmt.Sprintf(", did you mean %s?", near)
	}
	return Entry{}, f
}
