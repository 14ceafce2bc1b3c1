package layer

import (
	"archive/tar"
	"path"
	"strings"
	"time"

	"banger/internal/ext4"
	"banger/internal/fault"
)

// Entry is a file, directory or anything else that can be in a tree. All hard links to a file share one.
type Entry struct {
	Type               byte   // tar.TypeReg, TypeDir, TypeSymlink, TypeChar, TypeBlock or TypeFifo
	Mode               uint32 // permissions with setuid, setgid and sticky
	UID, GID           uint32
	Devmajor, Devminor uint32
	Links              int32 // names of it in the tree; 1 for a directory
	ModTime            time.Time
	Size               int64
	Linkname           string            // target of a symbolic link, as it is
	Xattrs             map[string]string // by name ("security.capability"); may be nil

	children map[string]name // of a directory
	contents extent          // of a regular file, as far as they are not in the stream
	touched  int32           // the newest layer that mentioned the directory or something below it
	swept    int32           // the newest layer that removed all it has not touched below the directory
	sent     bool            // the contents are in the stream
	implied  bool            // a directory that no entry has mentioned so far
}

// name is one name of an entry, in a directory.
type name struct {
	*Entry
	layer int32 // that made it, if it is not a directory's (see Entry.touched)
	sent  bool  // it is in the stream
}

// extent is where contents are: in a scratch file, in a file system that is being made, or nowhere.
type extent struct {
	file *scratch
	off  int64
	at   ext4.Extent
}

// IsDir reports whether e is a directory.
func (e *Entry) IsDir() bool { return e.Type == tar.TypeDir }

const xattrPrefix = "SCHILY.xattr."

// About how many bytes these take in memory, without their texts.
const (
	entrySize  = 128
	nameSize   = 128 // a directory's takes more with its map, others less
	recordSize = 64
	xattrSize  = 64
)

// isReserved tells extended attributes that are no part of an image: labels of the host that made it, and what
// overlayfs keeps for itself, which would be obeyed by a guest whose root is an overlay.
func isReserved(attr string) bool {
	return attr == "security.selinux" || attr == "system.nfs4_acl" || strings.HasPrefix(attr, "trusted.overlay.")
}

// newEntry returns what hdr says of a file that is no hard link.
func newEntry(hdr *tar.Header) (*Entry, error) {
	if hdr.Uid < 0 || hdr.Gid < 0 || hdr.Uid > maxOwner || hdr.Gid > maxOwner {
		return nil, invalid("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	e := &Entry{
		Type: hdr.Typeflag, Mode: uint32(hdr.Mode & 0o7777), UID: uint32(hdr.Uid), GID: uint32(hdr.Gid),
		ModTime: hdr.ModTime.UTC(),
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse: // a sparse file is read with its holes filled
		e.Type, e.Size = tar.TypeReg, hdr.Size
		if hdr.Size < 0 {
			return nil, invalid("negative size")
		}
	case tar.TypeSymlink:
		e.Linkname, e.Mode = strings.Clone(hdr.Linkname), 0o777
		if len(hdr.Linkname) == 0 || len(hdr.Linkname) > maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return nil, invalid("symbolic link has a bad target")
		}
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
			return nil, invalid("device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		e.Devmajor, e.Devminor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	case tar.TypeDir, tar.TypeFifo:
	default:
		return nil, invalid("unknown type %q", hdr.Typeflag)
	}
	return e, e.takeXattrs(hdr.PAXRecords)
}

// takeXattrs enters the extended attributes among the records.
func (e *Entry) takeXattrs(records map[string]string) error {
	size := 0
	for key, value := range records {
		attr, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || isReserved(attr) {
			continue
		}
		if attr == "" || len(attr) > maxName || strings.IndexByte(attr, 0) >= 0 {
			return invalid("extended attribute %q has a bad name", short(attr))
		}
		if size += len(attr) + len(value); size > maxXattr {
			return fault.New(fault.Exhausted, "extended attributes of more than %d bytes", maxXattr)
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[attr] = value
	}
	return nil
}

// memory is about what e takes here.
func (e *Entry) memory() int64 {
	n := entrySize + int64(len(e.Linkname))
	for attr, value := range e.Xattrs {
		n += int64(len(attr)+len(value)) + xattrSize
	}
	return n
}

// describe takes over the metadata of a directory that a newer layer mentions again.
func (e *Entry) describe(from *Entry) {
	e.Mode, e.UID, e.GID, e.ModTime, e.Xattrs = from.Mode, from.UID, from.GID, from.ModTime, from.Xattrs
}

// Header returns e as a tar entry of that name.
func (e *Entry) Header(name string) *tar.Header {
	hdr := &tar.Header{
		Typeflag: e.Type, Name: name, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), ModTime: e.ModTime,
		Size: e.Size, Linkname: e.Linkname, Devmajor: int64(e.Devmajor), Devminor: int64(e.Devminor),
		Format: tar.FormatPAX,
	}
	if len(e.Xattrs) > 0 {
		hdr.PAXRecords = make(map[string]string, len(e.Xattrs))
		for attr, value := range e.Xattrs {
			hdr.PAXRecords[xattrPrefix+attr] = value
		}
	}
	return hdr
}

// cleanName makes a name from a layer relative to the root, whatever it tries: "" is the root, "a/b" is below it.
func cleanName(name string) (string, error) {
	if len(name) > maxPath || strings.IndexByte(name, 0) >= 0 {
		return "", invalid("bad path")
	}
	clean := path.Clean("/" + name)[1:]
	for part := range strings.SplitSeq(clean, "/") {
		if len(part) > maxName {
			return "", invalid("name of %d bytes is longer than %d", len(part), maxName)
		}
	}
	return clean, nil
}

// splitName divides a clean name into the directory and the last part.
func splitName(clean string) (dir, base string) {
	i := strings.LastIndexByte(clean, '/')
	return clean[:max(i, 0)], clean[i+1:]
}
