package ext4

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"banger/internal/fault"
)

const (
	xattrMagic       = 0xEA020000
	xattrBlockHeader = 32
	xattrEntry       = 16 // without the name
	xattrEnd         = 4  // zeros behind the last entry
)

// xattr is an extended attribute as it lies on the disk: values at the end, entries at the beginning.
type xattr struct {
	index byte // of the prefix
	name  string
	value string
}

func (x xattr) entry() int { return (xattrEntry + len(x.name) + 3) &^ 3 }
func (x xattr) room() int  { return (len(x.value) + 3) &^ 3 }

// xattrPrefixes are what the beginning of a name is kept as, and all that ext4 has.
var xattrPrefixes = []struct {
	index  byte
	prefix string
	whole  bool
}{
	{2, "system.posix_acl_access", true},
	{3, "system.posix_acl_default", true},
	{1, "user.", false},
	{4, "trusted.", false},
	{6, "security.", false},
}

// newXattr returns what getxattr(2) would give; ok is false when Linux would not take it for a file on ext4 either.
func newXattr(name, value string) (x xattr, ok bool, err error) {
	for _, p := range xattrPrefixes {
		rest, found := strings.CutPrefix(name, p.prefix)
		switch {
		case !found || p.whole && rest != "":
			continue
		case p.whole:
			value, err = diskACL(value)
		case rest == "" || len(name) > maxName:
			err = fault.New(fault.Invalid, "extended attribute %q has a bad name", short(name))
		}
		return xattr{p.index, rest, value}, true, err
	}
	return xattr{}, false, nil
}

// encodeXattrs returns what goes behind the inode and what goes into a block of its own; nil for nothing.
func encodeXattrs(attrs map[string]string) (inline, block []byte, err error) {
	if len(attrs) == 0 {
		return nil, nil, nil
	}
	var near, far []xattr
	nearLeft, farLeft := inodeSize-inodeUsed-4-xattrEnd, blockSize-xattrBlockHeader-xattrEnd
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		x, ok, err := newXattr(name, attrs[name])
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			continue
		}
		switch need := x.entry() + x.room(); {
		case need <= nearLeft:
			near, nearLeft = append(near, x), nearLeft-need
		case need <= farLeft:
			far, farLeft = append(far, x), farLeft-need
		default:
			return nil, nil, fault.New(fault.Invalid, "extended attribute %q has no room: ext4 has one block for all of a file", short(name))
		}
	}
	if len(near) > 0 {
		inline = make([]byte, inodeSize-inodeUsed)
		binary.LittleEndian.PutUint32(inline, xattrMagic)
		putXattrs(near, inline[4:], 0)
	}
	if len(far) > 0 {
		slices.SortFunc(far, func(a, b xattr) int { // the kernel looks until it has come too far
			return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
		})
		block = make([]byte, blockSize)
		binary.LittleEndian.PutUint32(block, xattrMagic)
		binary.LittleEndian.PutUint32(block[4:], 1) // who uses it
		binary.LittleEndian.PutUint32(block[8:], 1) // blocks
		putXattrs(far, block[xattrBlockHeader:], xattrBlockHeader)
	}
	return inline, block, nil
}

// putXattrs fills b. Places of values count from before it.
func putXattrs(attrs []xattr, b []byte, before int) {
	end := len(b)
	for _, x := range attrs {
		end -= x.room()
		copy(b[end:], x.value)
	}
	at := 0
	end = len(b)
	for _, x := range attrs {
		end -= x.room()
		e := b[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		binary.LittleEndian.PutUint16(e[2:], uint16(end+before))
		binary.LittleEndian.PutUint32(e[8:], uint32(len(x.value)))
		binary.LittleEndian.PutUint32(e[12:], x.hash())
		copy(e[xattrEntry:], x.name)
		at += x.entry()
	}
}

// hash is what e2fsck expects of an entry.
func (x xattr) hash() uint32 {
	var h uint32
	for i := range len(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(x.name[i])
	}
	value := make([]byte, x.room())
	copy(value, x.value)
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(value)
	}
	return h
}
