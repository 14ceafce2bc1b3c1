package library

import (
	"context"
	"time"

	"banger/internal/image/source"
	"banger/internal/progress"
)

// Source is where images or kernels come from. The composition root passes daemon.Images and daemon.Kernels; tests pass
// their own. Functions that say so may be nil.
type Source struct {
	// Catalog lists what can be pulled by name, the default first, and what could not be read of that. refresh asks
	// the catalogs of other people anew.
	Catalog func(ctx context.Context, refresh bool) (items []Item, warnings []string)
	// Find returns what a reference stands for, or a fault of class NotFound.
	Find func(ctx context.Context, ref string) (Item, error)
	// Pull makes a directory below staging and says what is in it. On failure nothing is left there.
	Pull func(ctx context.Context, req Request, staging string, report progress.Func) (dir string, a Artifact, err error)
	// Load says what is in a directory that Pull, Register or Import has made.
	Load func(dir string) (Artifact, error)
	// Discard removes what any of them has made or left in staging.
	Discard func(ctx context.Context, dir string) error

	// Names returns the names that a reference may have on this host. Nil: only the reference itself.
	Names func(ref string) []string
	// CheckName returns a name that somebody chose as it is kept, or a fault of class Invalid. Nil: any.
	CheckName func(name string) (string, error)
	// Register makes the directory of an image that is a file of the user's. Nil: of kernels.
	Register func(ctx context.Context, r Registration, staging string, report progress.Func) (dir string, a Artifact, err error)
	// Import makes the directory of a kernel that is a file of the user's. Nil: of images.
	Import func(ctx context.Context, i Import, staging string, report progress.Func) (dir string, a Artifact, err error)
	// Brought finds the kernel that came with a staged image. Nil: none ever does.
	Brought func(staged string) (dir string, kernel Artifact, ok bool, err error)
}

// Item is something that can be pulled.
type Item struct {
	Name        string // that it gets on this host
	Description string
	Source      string
	Kernel      string // of an image: the kernel of VMs that name none
	Catalog     string // that lists it; empty: the embedded one
}

// Request says what to pull.
type Request struct {
	Reference string
	Name      string // that it gets here; empty: after the reference
	Arch      string // amd64, arm64; empty: the host's
	Force     bool   // make it anew although it is here

	// What a bundle is checked with.
	Keys   []string
	SHA256 string
}

// Registration is an image of the user's.
type Registration struct {
	Name   string
	Rootfs string
	Kernel string
	Config source.Config
}

// Import is a kernel of the user's.
type Import struct {
	Name    string
	Image   string
	Modules string
	Config  string
	Initrd  string
	Force   bool
}

// Artifact is an image or a kernel on this host.
type Artifact struct {
	Name    string // that it was looked up by; as Load returns it: the one that it was made as
	Digest  string // sha256:...
	Source  string // where it came from, for people
	Origin  string // the same in full, without credentials
	Arch    string // amd64, arm64
	Created time.Time
	Size    uint64 // virtual, of an image
	Problem string // why it cannot be used; empty: it can
	Lost    bool   // only pulling it again mends that
	Dir     string // on this host

	// Of a kernel.
	Version string   // the release, as uname -r prints it
	Package string   // that it was unpacked from
	Missing []string // what it lacks for banger, for people
	Initrd  bool     // it has an initial RAM disk of its own

	// Of an image.
	Kernel    string // of VMs that name none
	Config    source.Config
	Layers    []source.Layer // lowest first; none: it was not made of any
	Rootfs    string         // path of its root file system
	Unmanaged bool           // which is a file of the user's
}

// Ref is how it is best called: by its name, else by its digest.
func (a Artifact) Ref() string { return Found{a.Name, a.Digest}.Ref() }
