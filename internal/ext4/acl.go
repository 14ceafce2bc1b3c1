package ext4

import (
	"encoding/binary"

	"banger/internal/fault"
)

// Tags of an access control list (linux/posix_acl.h) whose entries name a user or group.
const (
	aclUser  = 0x02
	aclGroup = 0x08
)

// diskACL turns a POSIX access control list as getxattr returns it (version 2, every entry 8 bytes) into the form that
// ext4 keeps on the disk (version 1, an id only where there is one). Written as it is, the guest's kernel would
// answer EIO for the file.
func diskACL(value string) (string, error) {
	bad := fault.New(fault.Invalid, "malformed access control list")
	b := []byte(value)
	if len(b) < 4 || len(b)%8 != 4 || binary.LittleEndian.Uint32(b) != 2 {
		return "", bad
	}
	out := binary.LittleEndian.AppendUint32(nil, 1)
	for e := b[4:]; len(e) > 0; e = e[8:] {
		out = append(out, e[:4]...) // tag, permissions
		switch binary.LittleEndian.Uint16(e) {
		case aclUser, aclGroup:
			out = append(out, e[4:8]...)
		case 0x01, 0x04, 0x10, 0x20: // owner, owning group, mask, others
		default:
			return "", bad
		}
	}
	return string(out), nil
}
