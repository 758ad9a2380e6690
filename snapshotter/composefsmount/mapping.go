package composefsmount

import (
	"fmt"
	"strconv"
	"strings"
)

// A Mapping describes the owners in a container's user namespace, in the form of containerd's labels: ranges
// "container:host:count", separated by commas.
type Mapping struct{ UID, GID string }

// IsZero reports whether owners are not mapped.
func (m Mapping) IsZero() bool { return m == Mapping{} }

// Host maps an owner in the user namespace to the host. It fails if the namespace does not contain it, or if the
// mapping is malformed.
func (m Mapping) Host(uid, gid uint32) (hostUID, hostGID uint32, err error) {
	if hostUID, err = toHost(m.UID, uid); err != nil {
		return 0, 0, fmt.Errorf("map user %d by %q: %w", uid, m.UID, err)
	}
	if hostGID, err = toHost(m.GID, gid); err != nil {
		return 0, 0, fmt.Errorf("map group %d by %q: %w", gid, m.GID, err)
	}
	return hostUID, hostGID, nil
}

func toHost(ranges string, id uint32) (host uint32, err error) {
	found := false
	for r := range strings.SplitSeq(ranges, ",") {
		var n [3]uint64
		fields := strings.Split(r, ":")
		if len(fields) != len(n) {
			return 0, fmt.Errorf("%q is not of the form container:host:count", r)
		}
		for i, f := range fields {
			if n[i], err = strconv.ParseUint(f, 10, 32); err != nil {
				return 0, err
			}
		}
		container, first, count := n[0], n[1], n[2]
		if first+count > 1<<32-1 || container+count > 1<<32-1 { // the last number is not a valid ID
			return 0, fmt.Errorf("%q exceeds the range of IDs", r)
		}
		if off := uint64(id) - container; uint64(id) >= container && off < count {
			host, found = uint32(first+off), true
		}
	}
	if !found {
		return 0, fmt.Errorf("user namespace has no ID %d", id)
	}
	return host, nil
}
