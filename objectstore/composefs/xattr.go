package composefs

import (
	"encoding/binary"
	"math/bits"
	"strings"
)

const (
	xattrHeaderSize = 12         // sizeof(struct erofs_xattr_ibody_header)
	xattrEntrySize  = 4          // sizeof(struct erofs_xattr_entry)
	xattrFilterSeed = 0x25bbe08f // EROFS_XATTR_FILTER_SEED
	maxShared       = 128        // shared attributes of one inode; more become local
	maxXattrCount   = 65535      // i_xattr_icount is 16 bits wide

	overlayPrefix = "trusted.overlay."
	escapedPrefix = overlayPrefix + "overlay."

	xattrMetacopy         = overlayPrefix + "metacopy"
	xattrRedirect         = overlayPrefix + "redirect"
	xattrOpaque           = overlayPrefix + "opaque"
	xattrEscapedOpaque    = escapedPrefix + "opaque"
	xattrEscapedWhiteout  = escapedPrefix + "whiteout"
	xattrEscapedWhiteouts = escapedPrefix + "whiteouts"
	xattrUserOpaque       = "user.overlay.opaque"
	xattrUserWhiteout     = "user.overlay.whiteout"
	xattrUserWhiteouts    = "user.overlay.whiteouts"

	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"
)

// metacopyHeader is struct ovl_metacopy for a SHA-256 digest: version, length, flags, FS_VERITY_HASH_ALG_SHA256.
var metacopyHeader = [4]byte{0, 4 + digestSize, 0, 1}

// xattrPrefixes maps e_name_index to the prefix of a name. The format does not use index 5 (lustre.).
var xattrPrefixes = [...]string{
	1: "user.",
	2: xattrACLAccess,
	3: xattrACLDefault,
	4: "trusted.",
	6: "security.",
}

// xattrIndex splits a name into prefix index and suffix.
func xattrIndex(name string) (uint8, string) {
	for i, p := range xattrPrefixes {
		if p != "" && strings.HasPrefix(name, p) {
			return uint8(i), name[len(p):]
		}
	}
	return 0, name
}

// reservedXattr reports whether the writer marks escaped whiteouts with the attribute, so that a file of the tree
// cannot have it.
func reservedXattr(name string) bool {
	switch name {
	case overlayPrefix + "whiteout", overlayPrefix + "whiteouts", xattrUserWhiteout, xattrUserWhiteouts:
		return true
	}
	return false
}

// filterBit returns the bit that a name clears in an inode's name filter.
func filterBit(index uint8, suffix string) uint32 {
	return 1 << (xxh32(suffix, xattrFilterSeed+uint32(index)) & 31)
}

func xattrSize(suffix string, value []byte) int64 {
	return roundUp(int64(xattrEntrySize+len(suffix)+len(value)), 4)
}

// xxh32 is XXH32 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md). The maintained Go modules implement the 64-bit
// variant or take no seed.
func xxh32(s string, seed uint32) uint32 {
	const (
		p1 uint32 = 2654435761
		p2 uint32 = 2246822519
		p3 uint32 = 3266489917
		p4 uint32 = 668265263
		p5 uint32 = 374761393
	)
	b := []byte(s)
	h := seed + p5
	if len(b) >= 16 {
		v := [4]uint32{seed + p1 + p2, seed + p2, seed, seed - p1}
		for ; len(b) >= 16; b = b[16:] {
			for i := range v {
				v[i] = bits.RotateLeft32(v[i]+binary.LittleEndian.Uint32(b[4*i:])*p2, 13) * p1
			}
		}
		h = bits.RotateLeft32(v[0], 1) + bits.RotateLeft32(v[1], 7) +
			bits.RotateLeft32(v[2], 12) + bits.RotateLeft32(v[3], 18)
	}
	h += uint32(len(s))
	for ; len(b) >= 4; b = b[4:] {
		h = bits.RotateLeft32(h+binary.LittleEndian.Uint32(b)*p3, 17) * p4
	}
	for _, c := range b {
		h = bits.RotateLeft32(h+uint32(c)*p5, 11) * p1
	}
	h = (h ^ h>>15) * p2
	h = (h ^ h>>13) * p3
	return h ^ h>>16
}
