package testenv

import "strings"

// hasFilesystem reports whether a listing in the format of /proc/filesystems has the named type.
func hasFilesystem(listing, name string) bool {
	for line := range strings.Lines(listing) {
		fields := strings.Fields(line)
		if len(fields) > 0 && fields[len(fields)-1] == name {
			return true
		}
	}
	return false
}
