package containerd

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
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

// oldest are the oldest versions that have a configuration format as their newest.
var oldest = map[string]Version{"2": {1, 7}, "3": {2, 0}, "4": {2, 3}}

// ParseConfigVersion reads what a configuration is for: a version of containerd or, without a point, of the
// configuration format. Of a format it returns the oldest version of containerd that can read it.
func ParseConfigVersion(text string) (Version, error) {
	if v, ok := oldest[text]; ok {
		return v, nil
	}
	if !strings.Contains(text, ".") {
		return Version{}, fmt.Errorf("no containerd has configuration version %s", text)
	}
	return ParseVersion(text)
}

// StagesMounts reports whether containerd accepts read-only mounts for a layer that exists already, and does not fetch
// it.
func (v Version) StagesMounts() bool { return v.atLeast(2, 4) }

// MapsMounts reports whether containerd and its clients can mount with the options uidmap and gidmap.
func (v Version) MapsMounts() bool { return v.atLeast(2, 0) }

// Supported returns an error for a containerd that cannot load our proxy plugins at all.
func (v Version) Supported() error {
	if v.atLeast(1, 7) {
		return nil
	}
	return fmt.Errorf("containerd %d.%d has no proxy plugins of type \"diff\" and does not start with one configured: 1.7 or later is needed",
		v.Major, v.Minor)
}

// UnpacksInParallel reports whether containerd can unpack the layers of an image at the same time, and has the key
// max_concurrent_unpacks for that.
func (v Version) UnpacksInParallel() bool { return v.atLeast(2, 2) }

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
