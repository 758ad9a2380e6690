package layer

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

func isACL(name string) bool { return name == aclAccess || name == aclDefault }

// Tags of a POSIX ACL entry, from linux/posix_acl.h.
const (
	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

const noID = math.MaxUint32 // no ID

var errACL = errors.New("POSIX ACL is malformed")

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// normalACL gives an ACL the form in which the kernel returns it from a file of this mode, so that a file's object has
// the same checksum before and after it was on a disk: an access ACL agrees with the mode, and one that adds nothing to
// the mode is none at all (nil). The format is that of linux/posix_acl_xattr.h.
func normalACL(name string, v []byte, mode uint32) ([]byte, error) {
	if len(v) == 0 { // none, as for setxattr(2)
		return nil, nil
	}
	if len(v) < 4 || (len(v)-4)%8 != 0 || binary.LittleEndian.Uint32(v) != aclVersion {
		return nil, errACL
	}
	if name == aclDefault && mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, nil
	}
	var ents []aclEntry
	for b := v[4:]; len(b) > 0; b = b[8:] {
		e := aclEntry{
			tag: binary.LittleEndian.Uint16(b), perm: binary.LittleEndian.Uint16(b[2:]), id: binary.LittleEndian.Uint32(b[4:]),
		}
		if e.tag != aclUser && e.tag != aclGroup {
			e.id = noID
		}
		ents = append(ents, e)
	}
	if err := checkACL(ents); err != nil {
		return nil, err
	}
	if len(ents) == 0 {
		return nil, nil
	}
	if name == aclAccess {
		if len(ents) == 3 {
			return nil, nil
		}
		hasMask := slices.ContainsFunc(ents, func(e aclEntry) bool { return e.tag == aclMask })
		for i := range ents {
			switch e := &ents[i]; {
			case e.tag == aclUserObj:
				e.perm = uint16(mode >> 6 & 7)
			case e.tag == aclMask, e.tag == aclGroupObj && !hasMask:
				e.perm = uint16(mode >> 3 & 7)
			case e.tag == aclOther:
				e.perm = uint16(mode & 7)
			}
		}
	}
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range ents {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return out, nil
}

// checkACL is the kernel's posix_acl_valid: each class once, in order, and a mask if there are named entries.
func checkACL(ents []aclEntry) error {
	if len(ents) == 0 {
		return nil
	}
	var seen uint16
	var last uint16
	for _, e := range ents {
		if e.perm&^7 != 0 || e.tag < last || e.tag&(e.tag-1) != 0 || e.tag == 0 || e.tag > aclOther {
			return errACL
		}
		named := e.tag == aclUser || e.tag == aclGroup
		if named && e.id == noID || !named && seen&e.tag != 0 {
			return errACL
		}
		seen |= e.tag
		last = e.tag
	}
	const needed = aclUserObj | aclGroupObj | aclOther
	if seen&needed != needed || seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0 {
		return errACL
	}
	return nil
}
