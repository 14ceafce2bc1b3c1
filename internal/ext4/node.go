package ext4

import (
	"archive/tar"
	"maps"
	"slices"
	"time"

	"banger/internal/fault"
)

// Numbers of inodes that mean something.
const (
	rootInode  = 2
	firstInode = 11 // that of lost+found, without which e2fsck is not content
	maxLinks   = 65000
)

// Node is a file of any kind. One that has several names is several times in the tree.
type Node struct {
	Type               byte   // tar.TypeReg, TypeDir, TypeSymlink, TypeChar, TypeBlock or TypeFifo
	Mode               uint32 // permissions with setuid, setgid and sticky
	UID, GID           uint32
	Devmajor, Devminor uint32
	ModTime            time.Time
	Size               int64 // of a regular file
	Contents           Extent
	Linkname           string            // target of a symbolic link
	Xattrs             map[string]string // as getxattr(2) names and returns them; those that ext4 has no place for are left out
	Children           map[string]*Node  // of a directory

	number     uint32 // of the inode; 0: none yet
	links      uint32
	parent     uint32 // of a directory
	attributes uint32 // block of extended attributes; 0: none
	index      uint32 // first block of the list of extents; 0: it is in the inode
}

// NewDir returns an empty directory, as one is that nobody has described.
func NewDir() *Node {
	return &Node{Type: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0), Children: map[string]*Node{}}
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Type == tar.TypeDir }

// inodes gives every node of the tree its number. Files of one directory lie together.
func inodes(root *Node) ([]*Node, error) {
	const lostAndFound = "lost+found"
	lost := root.Children[lostAndFound]
	if lost == nil {
		lost = NewDir()
		lost.Mode = 0o700
		root.Children[lostAndFound] = lost
	}
	if !lost.IsDir() {
		return nil, fault.New(fault.Invalid, "%q must be a directory", lostAndFound)
	}
	root.number, root.parent, root.links = rootInode, rootInode, 2
	lost.number = firstInode
	list := make([]*Node, firstInode) // by number - 1
	list[rootInode-1], list[firstInode-1] = root, lost
	err := number(root, "", &list)
	return list, err
}

// number gives numbers to what is in the directory at path and below it, and looks whether ext4 has room for them.
func number(dir *Node, path string, list *[]*Node) error {
	names := slices.Sorted(maps.Keys(dir.Children))
	for _, name := range names {
		n := dir.Children[name]
		if n.number == 0 {
			*list = append(*list, n)
			n.number = uint32(len(*list))
			if _, _, err := encodeXattrs(n.Xattrs); err != nil {
				return fault.Context(err, "entry %q", short(path+name))
			}
		}
		if n.links++; n.links > maxLinks && !n.IsDir() {
			return fault.New(fault.Invalid, "entry %q has more than %d hard links", short(path+name), maxLinks)
		}
		if n.IsDir() {
			n.links++ // "."
			n.parent = dir.number
			dir.links++
		}
	}
	for _, name := range names {
		if n := dir.Children[name]; n.IsDir() {
			if err := number(n, path+name+"/", list); err != nil {
				return err
			}
		}
	}
	return nil
}
