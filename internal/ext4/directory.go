package ext4

import (
	"archive/tar"
	"encoding/binary"
	"io"
	"maps"
	"slices"
)

// dirReader gives the blocks of a directory one by one: there may be millions of names.
type dirReader struct {
	dir   *Node
	names []string // that are still to come, "." and ".." first
	rest  []byte   // of the block that is being read
	block [blockSize]byte
}

func newDirReader(n *Node) *dirReader {
	return &dirReader{dir: n, names: append([]string{".", ".."}, slices.Sorted(maps.Keys(n.Children))...)}
}

// entrySize is what a name takes in a directory.
func entrySize(name string) int { return (8 + len(name) + 3) &^ 3 }

// size is that of all blocks.
func (d *dirReader) size() int64 {
	blocks, used := int64(1), 0
	for _, name := range d.names {
		size := entrySize(name)
		if used+size > blockSize {
			blocks, used = blocks+1, 0
		}
		used += size
	}
	return blocks * blockSize
}

// Read implements io.Reader.
func (d *dirReader) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		if len(d.names) == 0 {
			return 0, io.EOF
		}
		d.fill()
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// fill makes the next block. Its last entry reaches to its end.
func (d *dirReader) fill() {
	clear(d.block[:])
	at, last := 0, 0
	for len(d.names) > 0 && at+entrySize(d.names[0]) <= blockSize {
		name := d.names[0]
		number, kind := d.find(name)
		e := d.block[at:]
		binary.LittleEndian.PutUint32(e, number)
		binary.LittleEndian.PutUint16(e[4:], uint16(entrySize(name)))
		e[6], e[7] = byte(len(name)), kind
		copy(e[8:], name)
		d.names = d.names[1:]
		last, at = at, at+entrySize(name)
	}
	binary.LittleEndian.PutUint16(d.block[last+4:], uint16(blockSize-last))
	d.rest = d.block[:]
}

func (d *dirReader) find(name string) (number uint32, kind byte) {
	switch name {
	case ".":
		return d.dir.number, fileTypes[tar.TypeDir].entry
	case "..":
		return d.dir.parent, fileTypes[tar.TypeDir].entry
	}
	child := d.dir.Children[name]
	return child.number, fileTypes[child.Type].entry
}
