// Package layer puts the layers of an OCI image on top of each other: one flat tar stream (Flatten), or a tree that can
// be looked into (OpenTree).
//
// The result is what unpacking one layer after the other into a directory as root would give, as umoci and containerd do
// it: whiteouts, directories that are replaced by files and files by directories, hard links within and across layers,
// entries below a symbolic link to a directory. Nothing is ever unpacked: the tree is in memory, contents go from the
// layers to the stream or wait in scratch files that have no name.
//
// Flatten reads each layer once, the highest first, and sends the contents of a file at once when nothing that is not
// known yet can take it away: no higher layer touches the path (see touched), and no lower layer is likely to lead it
// elsewhere by a symbolic link. All else waits in scratch until the tree of all layers is known. The guess about links
// may be wrong, and a layer may have a path twice: then the stream begins anew (ext4.ErrAnew), with nothing sent before
// everything was read.
//
// Layers come from strangers: everything is bounded by Limits, and every fault names the layer and the entry.
package layer

import (
	"context"
	"fmt"
	"io"

	"banger/internal/fault"
)

// Blob is one layer as it comes: a tar stream, usually compressed.
type Blob struct {
	MediaType string
	Digest    string // "sha256:..."; whoever supplies the blob checks it
	Size      int64  // bytes; 0: not known
	DiffID    string // digest of the uncompressed stream, checked here; may be empty

	// Open may be called more than once, and for several layers at once. The reader delivers the blob as it is in the
	// registry; a wrong digest comes out of Read as a fault before io.EOF. Its Read ends when ctx does.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Limits of what the layers may hold together. Zero means the default.
type Limits struct {
	Size    int64 // uncompressed bytes, and bytes of all files with their holes filled: 64 GiB
	Entries int   // entries of all layers: 16 Mi
	Memory  int64 // bytes that names and attributes take here, about: 1 GiB
}

// Defaults of Limits, and limits that need not be changed.
const (
	defaultSize    = 64 << 30
	defaultEntries = 16 << 20
	defaultMemory  = 1 << 30

	maxPath  = 4095     // PATH_MAX of Linux without the final NUL
	maxName  = 255      // one component
	maxLinks = 255      // symbolic links on the way to one name
	maxXattr = 64 << 10 // extended attributes of one entry
	maxOwner = 1<<32 - 2
	maxMajor = 0xfff
	maxMinor = 0xfffff
)

// Options of Flatten and OpenTree.
type Options struct {
	Scratch  string // existing private directory for temporary files
	Limits   Limits
	Progress func(done int64) // compressed bytes read so far; never called twice at once
}

func (l Limits) withDefaults() Limits {
	if l.Size <= 0 {
		l.Size = defaultSize
	}
	if l.Entries <= 0 {
		l.Entries = defaultEntries
	}
	if l.Memory <= 0 {
		l.Memory = defaultMemory
	}
	return l
}

// describe names a layer in messages: its place from the bottom and its digest.
func (b Blob) describe(number int) string {
	const enough = len("sha256:") + 12
	if b.Digest == "" {
		return fmt.Sprintf("layer %d", number)
	}
	return fmt.Sprintf("layer %d (%s)", number, b.Digest[:min(enough, len(b.Digest))])
}

// invalid is a fault for what a layer must not hold.
func invalid(format string, args ...any) error { return fault.New(fault.Invalid, format, args...) }

// short cuts a name from a layer to what fits in a message.
func short(name string) string {
	if len(name) > 200 {
		return name[:200] + fmt.Sprintf("... (%d bytes)", len(name))
	}
	return name
}
