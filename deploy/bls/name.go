package bls

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// suffix ends the name of an entry's file.
const suffix = ".conf"

// Tries is the boot counting in the name of an entry: how many tries are left, and how many have failed. An entry with
// none left is bad: a boot loader that counts offers it last. Boot loaders count by renaming.
type Tries struct{ Left, Done int }

// Name is the name of an entry's file.
type Name struct {
	Stem  string // without ".conf" and the tries: "ostree-2-os"
	Tries *Tries // nil: boots are not counted
}

var namePattern = regexp.MustCompile(`(?s)^(.+)\+([0-9]{1,9})(?:-([0-9]{1,9}))?$`)

// ParseName parses the name of a file in loader/entries. It reports false if the name is not that of an entry. A suffix
// after "+" that is not a number belongs to the stem. Numbers may be written in more ways than [Name.String] has: to
// remove a file, use the name under which it was found.
func ParseName(file string) (Name, bool) {
	stem, ok := strings.CutSuffix(file, suffix)
	if !ok || stem == "" || strings.ContainsAny(stem, "/\x00") {
		return Name{}, false
	}
	m := namePattern.FindStringSubmatch(stem)
	if m == nil {
		return Name{Stem: stem}, true
	}
	// Nine digits fit. No digits mean no failed tries.
	left, _ := strconv.Atoi(m[2])
	done, _ := strconv.Atoi(m[3])
	return Name{Stem: m[1], Tries: &Tries{Left: left, Done: done}}, true
}

// String returns the name of the file: "ostree-2-os.conf", "ostree-2-os+3.conf", "ostree-2-os+1-2.conf".
func (n Name) String() string {
	switch {
	case n.Tries == nil:
		return n.Stem + suffix
	case n.Tries.Done == 0:
		return fmt.Sprintf("%s+%d%s", n.Stem, n.Tries.Left, suffix)
	}
	return fmt.Sprintf("%s+%d-%d%s", n.Stem, n.Tries.Left, n.Tries.Done, suffix)
}

// CompareVersions compares versions as strverscmp of glibc does, by which ostree orders entries: sequences of digits
// compare as numbers, and those with leading zeros as fractions, which are less: 000 < 00 < 01 < 010 < 09 < 0 < 1 < 9 <
// 10.
func CompareVersions(a, b string) int {
	// The first difference, and the start of the digits that end there.
	i, digits := 0, 0
	for ; i < len(a) && i < len(b) && a[i] == b[i]; i++ {
		if !isDigit(a, i) {
			digits = i + 1
		}
	}
	if i == len(a) && i == len(b) {
		return 0
	}
	lenA, lenB := countDigits(a[i:]), countDigits(b[i:])
	if isNumber(a, digits) && isNumber(b, digits) {
		// The longer number is greater.
		if lenA != lenB {
			return sign(lenA - lenB)
		}
	} else if i > digits && strings.Trim(a[digits:i], "0") == "" && (lenA > 0) != (lenB > 0) {
		// After zeros alone a digit makes it a fraction, less than no digit, whatever follows.
		return sign(lenB - lenA)
	}
	return sign(at(a, i) - at(b, i))
}

func isDigit(s string, i int) bool { return i < len(s) && '0' <= s[i] && s[i] <= '9' }

// isNumber reports whether s has digits at i that do not begin with a zero.
func isNumber(s string, i int) bool { return isDigit(s, i) && s[i] != '0' }

func countDigits(s string) (n int) {
	for isDigit(s, n) {
		n++
	}
	return n
}

// at returns a byte of s, or 0 past the end.
func at(s string, i int) int {
	if i < len(s) {
		return int(s[i])
	}
	return 0
}

func sign(n int) int { return min(max(n, -1), 1) }

// OSTreeArg is the value of the kernel argument ostree=, the link to the deployment.
type OSTreeArg struct {
	BootVersion int // 0 or 1
	Stateroot   string
	BootCsum    string // 64 hex digits
	BootSerial  int
}

var ostreePattern = regexp.MustCompile(`^/ostree/boot\.([01])/([^/\s"]+)/([0-9a-f]{64})/(0|[1-9][0-9]{0,8})$`)

// ParseOSTreeArg parses the value of the argument ostree=.
func ParseOSTreeArg(value string) (OSTreeArg, error) {
	m := ostreePattern.FindStringSubmatch(value)
	if m == nil || m[2] == "." || m[2] == ".." {
		return OSTreeArg{}, fmt.Errorf("parse ostree=%.300q: not /ostree/boot.N/STATEROOT/BOOTCSUM/SERIAL", value)
	}
	serial, _ := strconv.Atoi(m[4]) // nine digits fit
	return OSTreeArg{BootVersion: int(m[1][0] - '0'), Stateroot: m[2], BootCsum: m[3], BootSerial: serial}, nil
}

// String returns the path of the link: /ostree/boot.1/os/<bootcsum>/0.
func (a OSTreeArg) String() string {
	return fmt.Sprintf("/ostree/boot.%d/%s/%s/%d", a.BootVersion, a.Stateroot, a.BootCsum, a.BootSerial)
}

var kernelVersion = regexp.MustCompile(`^[A-Za-z0-9._+~-]+$`)

// IsKernelVersion reports whether an entry and the names of its files can have a kernel version as it is. Every reader of
// entries and every file system, FAT among them, takes these characters.
func IsKernelVersion(version string) bool { return kernelVersion.MatchString(version) }
