package image

import (
	"banger/internal/imageref"
	"banger/internal/transfer"
)

// Default is the image of a VM that names none.
const Default = "debian-bookworm"

// Entry is an image that can be pulled.
type Entry struct {
	Name        string // what it is called on this host
	Description string
	Arch        string   // amd64, arm64; empty: any that its sources have
	Kernel      string   // kernel reference of a VM that names none; empty: the default kernel
	Catalog     string   // that lists it; empty: the embedded one, or none
	Sources     []Origin // in the order of preference; each gives an equivalent image
}

// Origin is one way to get an image.
type Origin struct {
	Kind     string // which source.Source: one of the Kind constants
	Location string // what that source is to fetch
	SHA256   string // of the file there, hexadecimal, as a verified catalog says; may be empty
	Size     int64  // of that file; 0: not known
}

// String returns the origin as it is shown and kept in a manifest, without credentials: "debian:bookworm".
func (o Origin) String() string {
	if imageref.IsURL(o.Location) {
		return o.Kind + ":" + transfer.Redact(o.Location)
	}
	return o.Kind + ":" + o.Location
}

// Catalog returns every image that can be pulled by name, the default first.
func Catalog() []Entry {
	return []Entry{
		{
			Name:        Default,
			Description: "Debian 12 (bookworm) with git, curl, ssh, tmux, jq, Python and sudo",
			Kernel:      "debian-bookworm",
			Sources:     []Origin{{Kind: KindDebian, Location: "bookworm"}},
		},
		{
			Name:        "debian-trixie",
			Description: "Debian 13 (trixie) with git, curl, ssh, tmux, jq, Python and sudo",
			Kernel:      "debian-trixie",
			Sources:     []Origin{{Kind: KindDebian, Location: "trixie"}},
		},
	}
}
