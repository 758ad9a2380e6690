package layer

import (
	"encoding/binary"
	"errors"
)

const xattrCaps = "security.capability"

// Sizes and revisions of file capabilities, from linux/capability.h.
const (
	capsSize2 = 20 // XATTR_CAPS_SZ_2
	capsSize3 = 24 // XATTR_CAPS_SZ_3, with the user ID of root in the user namespace they apply to

	capsRevision2 = 0x02000000
	capsRevision3 = 0x03000000
	capsEffective = 0x00000001 // VFS_CAP_FLAGS_EFFECTIVE
)

var errCaps = errors.New("file capabilities are malformed")

// normalCaps gives capabilities the form in which the kernel returns them from a file, like normalACL: those for a user
// namespace with the same root have no owner. Capabilities that the kernel would refuse are an error.
func normalCaps(v []byte) ([]byte, error) {
	if len(v) == 0 { // setxattr(2) accepts it, but getxattr(2) fails: treat it as none
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
