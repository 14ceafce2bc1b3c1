package kernel

import (
	"fmt"

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
	Package     map[string]string // meta package for each Debian architecture; it depends on the newest kernel
}

// Catalog returns every kernel that banger knows how to pull, the default first.
func Catalog() []Entry {
	return []Entry{
		{
			Name:        Default,
			Description: "Debian 12 (bookworm) cloud kernel, Linux 6.1",
			Codename:    "bookworm",
			Package:     map[string]string{"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"},
		},
		{
			Name:        "debian-trixie",
			Description: "Debian 13 (trixie) cloud kernel, Linux 6.12",
			Codename:    "trixie",
			Package:     map[string]string{"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"},
		},
	}
}

// Find returns the catalog entry of that name.
func Find(name string) (Entry, error) {
	var names []string
	for _, e := range Catalog() {
		if e.Name == name {
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
