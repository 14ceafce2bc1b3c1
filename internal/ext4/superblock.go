package ext4

import (
	"encoding/binary"
	"errors"
	"io"
)

// Where the superblock is and what of it is used here (linux/fs/ext4/ext4.h). The converter writes no checksums, so
// fields can be set afterwards.
const (
	superblock     = 1024
	superblockSize = 1024
	offBlocks      = 0x04 // u32
	offInodesGroup = 0x28 // u32, inodes of a group
	offMagic       = 0x38 // u16
	offUUID        = 0x68
	offLabel       = 0x78

	magic           = 0xEF53
	uuidSize        = 16
	labelSize       = 16
	groupBlocks     = 8 * blockSize
	descriptorSize  = 32
	offInodesBitmap = 4 // in a group descriptor, u32
)

type readWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// finish sets what the converter leaves empty: the label, a UUID made from the digest, and the unused end of the inode
// bitmaps. Overlayfs warns and loses stable inode numbers on a lower layer whose UUID is all zero, and the same image
// should have the same one everywhere.
func finish(f readWriterAt, digest []byte, label string) error {
	sb := make([]byte, superblockSize)
	if _, err := f.ReadAt(sb, superblock); err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(sb[offMagic:]) != magic {
		return errors.New("no ext4 superblock was written")
	}
	copy(sb[offUUID:offUUID+uuidSize], digest)
	sb[offUUID+6] = sb[offUUID+6]&0x0f | 0x80 // RFC 9562: version 8, a UUID of the maker's own definition
	sb[offUUID+8] = sb[offUUID+8]&0x3f | 0x80
	copy(sb[offLabel:offLabel+labelSize], label)
	if _, err := f.WriteAt(sb, superblock); err != nil {
		return err
	}
	return padBitmaps(f, sb)
}

// padBitmaps marks the inodes that a group does not have as used, as e2fsck expects.
func padBitmaps(f readWriterAt, sb []byte) error {
	inodes := binary.LittleEndian.Uint32(sb[offInodesGroup:])
	groups := (binary.LittleEndian.Uint32(sb[offBlocks:]) + groupBlocks - 1) / groupBlocks
	if inodes == 0 || inodes%8 != 0 || inodes > groupBlocks {
		return errors.New("the ext4 superblock is not as expected")
	}
	padding := make([]byte, blockSize-inodes/8)
	for i := range padding {
		padding[i] = 0xff
	}
	descriptor := make([]byte, descriptorSize)
	for group := range int64(groups) {
		if _, err := f.ReadAt(descriptor, blockSize+group*descriptorSize); err != nil {
			return err
		}
		bitmap := int64(binary.LittleEndian.Uint32(descriptor[offInodesBitmap:])) * blockSize
		if _, err := f.WriteAt(padding, bitmap+int64(inodes/8)); err != nil {
			return err
		}
	}
	return nil
}
