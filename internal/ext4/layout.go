package ext4

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"math/bits"
	"time"
)

// What is on the disk, and where (linux/fs/ext4/ext4.h): superblock, group descriptors (as many as the largest file system
// needs), data, directories, inode tables, bitmaps. There are no copies of the superblock and no checksums.
const (
	groupBlocks     = 8 * blockSize
	descriptorSize  = 32
	inodeSize       = 256
	inodeUsed       = 152 // with the times of nanoseconds; attributes follow
	inodesPerBlock  = blockSize / inodeSize
	fastLink        = 59 // bytes of a symbolic link's target that fit in the inode
	extentsInInode  = 4
	extentsInBlock  = blockSize/12 - 1
	blocksPerExtent = 1 << 15
	superblock      = 1024
	uuidSize        = 16
	labelSize       = 16

	flagExtents = 0x80000
)

// descriptorBlocks is how many blocks of group descriptors are kept free.
func (w *Writer) descriptorBlocks() uint32 {
	groups := (uint64(w.end) + groupBlocks - 1) / groupBlocks
	return uint32((groups*descriptorSize + blockSize - 1) / blockSize)
}

// finish writes the tree. The UUID is made from id.
func (w *Writer) finish(root *Node, id []byte, label string) error {
	list, err := inodes(root)
	if err != nil {
		return err
	}
	s := w.Stream()
	for _, n := range list {
		if n != nil {
			if err := n.writeBlocks(s); err != nil {
				return err
			}
		}
	}
	if err := s.Close(); err != nil {
		return err
	}
	l, err := w.plan(uint32(len(list)))
	if err != nil {
		return err
	}
	if err := l.writeInodes(list); err != nil {
		return err
	}
	return l.writeGroups(list, id, label)
}

// writeBlocks writes all of n but its contents and its inode.
func (n *Node) writeBlocks(s *Stream) error {
	put := func(data []byte) (uint32, error) {
		at, err := s.Put(bytes.NewReader(data), int64(len(data)))
		return at.start, err
	}
	_, attributes, err := encodeXattrs(n.Xattrs)
	if err == nil && attributes != nil {
		n.attributes, err = put(attributes)
	}
	if err != nil {
		return err
	}
	switch {
	case n.IsDir():
		blocks := newDirReader(n)
		n.Size = blocks.size()
		n.Contents, err = s.Put(blocks, n.Size)
	case n.Type == tar.TypeSymlink:
		if n.Size = int64(len(n.Linkname)); n.Size > fastLink {
			n.Contents.start, err = put([]byte(n.Linkname))
		}
	}
	if index := n.indexBlocks(); err == nil && len(index) > 0 {
		n.index, err = put(index)
	}
	return err
}

// fileTypes are those of directory entries and, shifted, of modes.
var fileTypes = map[byte]struct {
	entry byte
	mode  uint16
}{
	tar.TypeReg: {1, 0o100000}, tar.TypeDir: {2, 0o040000}, tar.TypeChar: {3, 0o020000}, tar.TypeBlock: {4, 0o060000},
	tar.TypeFifo: {5, 0o010000}, tar.TypeSymlink: {7, 0o120000},
}

// blocks is how many the contents take.
func (n *Node) blocks() uint32 {
	if n.Type == tar.TypeSymlink && n.Size <= fastLink {
		return 0
	}
	return blocksOf(n.Size)
}

// extents appends those of a piece of the contents, to be found below one header.
func (n *Node) extents(b []byte, from, to uint32) []byte {
	for ; from < to; from += blocksPerExtent {
		b = binary.LittleEndian.AppendUint32(b, from)
		b = binary.LittleEndian.AppendUint16(b, uint16(min(to-from, blocksPerExtent)))
		b = binary.LittleEndian.AppendUint16(b, 0)
		b = binary.LittleEndian.AppendUint32(b, n.Contents.start+from)
	}
	return b
}

func extentHeader(entries, most, depth int) []byte {
	b := binary.LittleEndian.AppendUint16(nil, 0xF30A)
	for _, v := range []int{entries, most, depth, 0, 0} {
		b = binary.LittleEndian.AppendUint16(b, uint16(v))
	}
	return b
}

// indexBlocks are those with the extents that have no room in the inode.
func (n *Node) indexBlocks() []byte {
	blocks := n.blocks()
	if blocks <= extentsInInode*blocksPerExtent {
		return nil
	}
	var b []byte
	const each = extentsInBlock * blocksPerExtent
	for from := uint32(0); from < blocks; from += each {
		to := min(blocks, from+each)
		list := n.extents(nil, from, to)
		b = append(b, extentHeader(len(list)/12, extentsInBlock, 0)...)
		b = append(b, list...)
		b = append(b, zeros[:(blockSize-len(b)%blockSize)%blockSize]...)
	}
	return b
}

// root is what the inode says about where the contents are.
func (n *Node) root() []byte {
	if n.index == 0 {
		list := n.extents(nil, 0, n.blocks())
		return append(extentHeader(len(list)/12, extentsInInode, 0), list...)
	}
	const each = extentsInBlock * blocksPerExtent
	var list []byte
	for i, from := uint32(0), uint32(0); from < n.blocks(); i, from = i+1, from+each {
		list = binary.LittleEndian.AppendUint32(list, from)
		list = binary.LittleEndian.AppendUint32(list, n.index+i)
		list = binary.LittleEndian.AppendUint32(list, 0)
	}
	return append(extentHeader(len(list)/12, extentsInInode, 1), list...)
}

// encode writes the inode to b, which is zero.
func (n *Node) encode(b []byte) error {
	le := binary.LittleEndian
	inline, _, err := encodeXattrs(n.Xattrs)
	if err != nil {
		return err
	}
	used := n.blocks()
	if n.attributes != 0 {
		used++
	}
	if n.index != 0 {
		used += (n.blocks() + extentsInBlock*blocksPerExtent - 1) / (extentsInBlock * blocksPerExtent)
	}
	links := n.links
	if n.IsDir() && links > maxLinks {
		links = 1 // feature dir_nlink: not counted
	}
	mode := n.Mode & 0o7777
	if n.Type == tar.TypeSymlink {
		mode = 0o777
	}
	le.PutUint16(b[0:], fileTypes[n.Type].mode|uint16(mode))
	le.PutUint16(b[2:], uint16(n.UID))
	le.PutUint32(b[4:], uint32(n.Size))
	le.PutUint16(b[24:], uint16(n.GID))
	le.PutUint16(b[26:], uint16(links))
	sectors := uint64(used) * (blockSize / 512)
	le.PutUint32(b[28:], uint32(sectors))
	le.PutUint32(b[104:], n.attributes)
	le.PutUint32(b[108:], uint32(n.Size>>32))
	le.PutUint16(b[116:], uint16(sectors>>32))
	le.PutUint16(b[120:], uint16(n.UID>>16))
	le.PutUint16(b[122:], uint16(n.GID>>16))
	le.PutUint16(b[128:], inodeUsed-128)
	seconds, extra := stamp(n.ModTime)
	for _, at := range []int{8, 12, 16, 144} { // atime, ctime, mtime, crtime
		le.PutUint32(b[at:], seconds)
	}
	for _, at := range []int{132, 136, 140, 148} {
		le.PutUint32(b[at:], extra)
	}
	switch n.Type {
	case tar.TypeSymlink:
		if n.Size <= fastLink {
			copy(b[40:], n.Linkname)
			break
		}
		fallthrough
	case tar.TypeReg, tar.TypeDir:
		le.PutUint32(b[32:], flagExtents)
		copy(b[40:100], n.root())
	case tar.TypeChar, tar.TypeBlock:
		le.PutUint32(b[44:], n.Devminor&0xff|n.Devmajor<<8|n.Devminor&^0xff<<12)
	}
	copy(b[inodeUsed:], inline)
	return nil
}

// stamp is how ext4 keeps a time: the low 32 bits of the seconds, as a signed number; then two bits that count how often
// 2^32 is to be added, and the nanoseconds.
func stamp(t time.Time) (seconds, extra uint32) {
	const first, last = -1 << 31, 3<<32 + 1<<31 - 1
	s := min(max(t.Unix(), first), last)
	return uint32(s), uint32((s-int64(int32(s)))>>32)&3 | uint32(t.Nanosecond())<<2
}

// layout is where the metadata of all groups is.
type layout struct {
	*Writer
	groups         uint32
	inodesPerGroup uint32
	table          uint32 // first block of all inode tables
	bitmaps        uint32 // first block of all bitmaps: of blocks and of inodes, by turns
	size           uint32 // blocks of the file system
}

// plan chooses the smallest number of groups that has room for everything.
func (w *Writer) plan(inodes uint32) (layout, error) {
	for groups := max(1, w.next/groupBlocks); ; groups++ {
		each := (inodes + groups - 1) / groups
		each = (each + inodesPerBlock - 1) / inodesPerBlock * inodesPerBlock
		used := uint64(w.next) + uint64(groups)*uint64(each/inodesPerBlock+2)
		size := max(used, uint64(groups-1)*groupBlocks+1) // the last group has a block of its own
		switch {
		case size > uint64(w.end) || uint64(groups) > uint64(w.descriptorBlocks())*(blockSize/descriptorSize):
			return layout{}, w.full()
		case each > groupBlocks || used > uint64(groups)*groupBlocks:
			continue
		}
		table := w.next
		l := layout{Writer: w, groups: groups, inodesPerGroup: each, table: table, bitmaps: table + groups*each/inodesPerBlock, size: uint32(size)}
		w.next = uint32(used)
		return l, nil
	}
}

func (l layout) writeInodes(list []*Node) error {
	const batch = 1024
	buf := make([]byte, batch*inodeSize)
	for from := 0; from < len(list); from += batch {
		part := list[from:min(from+batch, len(list))]
		clear(buf)
		for i, n := range part {
			if n != nil {
				if err := n.encode(buf[i*inodeSize : (i+1)*inodeSize]); err != nil {
					return err
				}
			}
		}
		if _, err := l.f.WriteAt(buf[:len(part)*inodeSize], int64(l.table)*blockSize+int64(from)*inodeSize); err != nil {
			return err
		}
	}
	return nil
}

// bitmap returns the bitmap of all blocks of all groups.
func (l layout) bitmap() []byte {
	b := bytes.Repeat([]byte{0xff}, int(l.groups)*blockSize)
	clearBits := func(s span) {
		for i := s.start; i < s.start+s.blocks; i++ {
			b[i/8] &^= 1 << (i % 8)
		}
	}
	for _, s := range l.free {
		clearBits(s)
	}
	usedDescriptors := (l.groups*descriptorSize + blockSize - 1) / blockSize
	clearBits(span{1 + usedDescriptors, l.descriptorBlocks() - usedDescriptors})
	if l.next < l.size {
		clearBits(span{l.next, l.size - l.next})
	}
	return b
}

// writeGroups writes bitmaps, descriptors and superblock.
func (l layout) writeGroups(list []*Node, id []byte, label string) error {
	le := binary.LittleEndian
	blocks := l.bitmap()
	maps := make([]byte, 2*blockSize*int(l.groups))
	descriptors := make([]byte, descriptorSize*int(l.groups))
	var freeBlocks, freeInodes uint32
	for g := range l.groups {
		of := maps[2*blockSize*int(g) : 2*blockSize*int(g+1)]
		copy(of[:blockSize], blocks[int(g)*blockSize:])
		free, dirs := l.inodeMap(of[blockSize:], list, g)
		unused := uint32(groupBlocks - ones(of[:blockSize]))
		freeBlocks, freeInodes = freeBlocks+unused, freeInodes+free
		d := descriptors[descriptorSize*int(g):]
		le.PutUint32(d[0:], l.bitmaps+2*g)
		le.PutUint32(d[4:], l.bitmaps+2*g+1)
		le.PutUint32(d[8:], l.table+g*(l.inodesPerGroup/inodesPerBlock))
		le.PutUint16(d[12:], uint16(unused))
		le.PutUint16(d[14:], uint16(free))
		le.PutUint16(d[16:], uint16(dirs))
	}
	if _, err := l.f.WriteAt(maps, int64(l.bitmaps)*blockSize); err != nil {
		return err
	}
	if _, err := l.f.WriteAt(descriptors, blockSize); err != nil {
		return err
	}
	_, err := l.f.WriteAt(l.superblock(freeBlocks, freeInodes, id, label), superblock)
	return err
}

// inodeMap fills the bitmap of the inodes of a group, of which those that it does not have count as used.
func (l layout) inodeMap(b []byte, list []*Node, group uint32) (free, dirs uint32) {
	for i := range uint32(groupBlocks) {
		at := group*l.inodesPerGroup + i
		switch {
		case i >= l.inodesPerGroup, at < firstInode-1:
			b[i/8] |= 1 << (i % 8)
			if at == rootInode-1 && i < l.inodesPerGroup {
				dirs++
			}
		case int(at) < len(list):
			b[i/8] |= 1 << (i % 8)
			if list[at].IsDir() {
				dirs++
			}
		default:
			free++
		}
	}
	return free, dirs
}

func ones(b []byte) (n int) {
	for ; len(b) > 0; b = b[8:] {
		n += bits.OnesCount64(binary.LittleEndian.Uint64(b))
	}
	return n
}

// superblock returns it. The UUID is one of version 8 (RFC 9562: of the maker's own definition): overlayfs warns and loses
// stable inode numbers on a lower layer whose UUID is all zero, and the same image should have the same one everywhere.
func (l layout) superblock(freeBlocks, freeInodes uint32, id []byte, label string) []byte {
	b := make([]byte, 1024)
	le := binary.LittleEndian
	for at, v := range map[int]uint32{
		0x00: l.inodesPerGroup * l.groups, 0x04: l.size, 0x0c: freeBlocks, 0x10: freeInodes,
		0x18: 2, 0x1c: 2, // blocks and clusters of 1024 << 2 bytes
		0x20: groupBlocks, 0x24: groupBlocks, 0x28: l.inodesPerGroup,
		0x4c:  1,                                // revision: with what follows
		0x54:  firstInode,                       // that is not reserved
		0x5c:  0x8 | 0x200,                      // ext_attr, sparse_super2
		0x60:  0x2 | 0x40 | 0x200,               // filetype, extent, flex_bg
		0x64:  0x2 | 0x8 | 0x20 | 0x40 | 0x1000, // large_file, huge_file, dir_nlink, extra_isize, read-only
		0x268: firstInode,                       // lost+found
	} {
		le.PutUint32(b[at:], v)
	}
	for at, v := range map[int]uint16{
		0x38: 0xEF53, 0x3a: 1, 0x3c: 1, // magic, clean, go on after errors
		0x58: inodeSize, 0x15c: inodeUsed - 128, 0x15e: inodeUsed - 128,
	} {
		le.PutUint16(b[at:], v)
	}
	b[0x174] = 31 // all groups are one to flex_bg
	uuid := b[0x68 : 0x68+uuidSize]
	copy(uuid, id)
	uuid[6] = uuid[6]&0x0f | 0x80
	uuid[8] = uuid[8]&0x3f | 0x80
	copy(b[0x78:0x78+labelSize], label)
	return b
}
