package image

import (
	"slices"
	"strings"

	"banger/internal/fault"
	"banger/internal/nearest"
)

// Default is the image of a VM that names none.
const Default = "debian-bookworm"

// Entry is an image that can be pulled by name.
type Entry struct {
	Name        string
	Description string
	Kernel      string   // kernel reference of a VM that names none
	Sources     []Origin // in the order of preference; each gives an equivalent image
}

// Origin is one way to get an image.
type Origin struct {
	Kind     string // which source.Source
	Location string // what that source is to fetch
}

// String returns the origin as it is shown and kept in a manifest: "debian:bookworm".
func (o Origin) String() string { return o.Kind + ":" + o.Location }

// Catalog returns every image that can be pulled by name, the default first.
func Catalog() []Entry {
	return []Entry{{
		Name:        Default,
		Description: "Debian 12 (bookworm) with git, curl, ssh, tmux, jq, Python and sudo",
		Kernel:      "debian-bookworm",
		Sources:     []Origin{{Kind: "debian", Location: "bookworm"}},
	}}
}

// Find returns the entry of that name.
func Find(ref string) (Entry, error) {
	entries := Catalog()
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name
	}
	if i := slices.Index(names, ref); i >= 0 {
		return entries[i], nil
	}
	message := ""
	if near := nearest.Of(strings.ToLower(ref), names); near != "" {
		message = "; did you mean " + near + "?"
	}
	return Entry{}, fault.New(fault.NotFound, "no image is called %q%s", ref, message).WithHint("banger image catalog")
}
