package layer

import (
	"encoding/binary"
	"errors"
)

const xattrCaps = "security.capability"

// Sizes and revisions of a file's capabilities, from linux/capability.h.
const (
	capsSize2 = 20 // XATTR_CAPS_SZ_2
	capsSize3 = 24 // XATTR_CAPS_SZ_3, with the user ID that is root in the user namespace they are for

	capsRevision2 = 0x02000000
	capsRevision3 = 0x03000000
	capsEffective = 0x00000001 // VFS_CAP_FLAGS_EFFECTIVE
)

var errCaps = errors.New("file capabilities are malformed")

// normalCaps gives capabilities the form in which the kernel returns them once they are on a file, as normalACL does:
// those for the user namespace whose root is root have no owner. What the kernel would refuse is an error.
func normalCaps(v []byte) ([]byte, error) {
	if len(v) == 0 { // setxattr(2) takes it, and getxattr(2) fails on it: it is as good as none
		return nil, nil
	}
	if len(v) != capsSize2 && len(v) != capsSize3 {
		return nil, errCaps
	}
	le := binary.LittleEndian
	revision, effective := le.Uint32(v)&^capsEffective, le.Uint32(v)&capsEffective
	switch {
	case len(v) == capsSize2 && revision == capsRevision2:
		return v, nil
	case len(v) != capsSize3 || revision != capsRevision3 || le.Uint32(v[capsSize2:]) == noID:
		return nil, errCaps
	case le.Uint32(v[capsSize2:]) != 0:
		return v, nil
	}
	out := le.AppendUint32(nil, capsRevision2|effective)
	return append(out, v[4:capsSize2]...), nil
}
