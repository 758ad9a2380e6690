package containerd

import (
	"fmt"
	"regexp"
	"strconv"
)

// A Version is the part of a containerd version that features depend on.
type Version struct{ Major, Minor int }

var versionPattern = regexp.MustCompile(`^v?([0-9]{1,4})\.([0-9]{1,4})(?:[^0-9]|$)`)

// ParseVersion reads a version as containerd reports it: "2.4.2", "v2.0.0-rc.1", "1.7.35~ds1", "2.4".
func ParseVersion(text string) (Version, error) {
	m := versionPattern.FindStringSubmatch(text)
	if m == nil {
		return Version{}, fmt.Errorf("containerd version %q is not of the form 2.4.2", text)
	}
	var v Version
	v.Major, _ = strconv.Atoi(m[1]) // cannot fail: the pattern matches a few digits
	v.Minor, _ = strconv.Atoi(m[2])
	return v, nil
}

// StagesMounts reports whether containerd accepts read-only mounts for a layer that exists already, and does not fetch
// it.
func (v Version) StagesMounts() bool { return v.atLeast(2, 4) }

// ConfigFormat returns the newest version of the configuration format that containerd supports.
func (v Version) ConfigFormat() int {
	switch {
	case v.atLeast(2, 3):
		return 4
	case v.atLeast(2, 0):
		return 3
	}
	return 2
}

func (v Version) atLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}
