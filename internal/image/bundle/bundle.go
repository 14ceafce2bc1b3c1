// Package bundle is an image in one file that any web server can serve: NAME.tar.zst, a manifest, the root file system and
// perhaps its kernel. docs/bundle.md describes the format.
//
// Three things stand between such a file and the image store. Where the file comes from the network, a signature by a
// trusted key or a digest that the user gave must fit the whole of it, before a byte of it is parsed (source.go). The
// manifest says the length and digest of each part, and every byte that leaves this package is held against them
// (read.go). And what is in the parts is hostile all the same: package ext4 bounds what a tar stream may hold, and a
// kernel is taken out file by file, by name (kernel.go).
package bundle

// Limits of what is read. Zero means the default of each.
type Limits struct {
	Size     int64 // of the root file system's tar, uncompressed
	Entries  int   // of that; 0: as many as are possible
	Download int64 // of a bundle from the network, compressed
}

// Defaults of Limits.
const (
	DefaultSize     = 64 << 30 // as large as the file system that it goes into
	DefaultDownload = 32 << 30
)

func (l Limits) withDefaults() Limits {
	if l.Size == 0 {
		l.Size = DefaultSize
	}
	if l.Download == 0 {
		l.Download = DefaultDownload
	}
	return l
}
