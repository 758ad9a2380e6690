package kargs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// DropInDir holds the kernel arguments of an image, in files whose names end in .toml, read in the order of their
// names.
const DropInDir = "usr/lib/bootc/kargs.d"

// MaxDropIn is the largest file that [ParseDropIn] reads.
const MaxDropIn = 64 << 10

// dropIn is a file in kargs.d.
type dropIn struct {
	Kargs *[]string `toml:"kargs"`
	Match *[]string `toml:"match-architectures"`
}

// The keys of a dropIn.
const (
	keyKargs = "kargs"
	keyMatch = "match-architectures"
)

// ParseDropIn parses a file of usr/lib/bootc/kargs.d, whose format bootc defines
// (https://bootc-dev.github.io/bootc/building/kernel-arguments.html):
//
//	kargs = ["console=ttyS0,115200n8"]
//	match-architectures = ["x86_64"]
//
// It returns no arguments if the file is for other architectures. bootc uses Rust's names for them; arch, and the file,
// may also use Go's or the kernel's. As with bootc, kargs is required and unknown keys are an error. A string that
// holds several arguments is split. Control characters, which a boot entry cannot hold, are an error.
func ParseDropIn(data []byte, arch string) ([]string, error) {
	if len(data) > MaxDropIn {
		return nil, fmt.Errorf("parse kernel arguments: more than %d bytes", MaxDropIn)
	}
	if err := checkKeys(data); err != nil {
		return nil, fmt.Errorf("parse kernel arguments: %w", err)
	}
	var d dropIn
	if err := toml.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("parse kernel arguments: %w", err)
	}
	if d.Kargs == nil {
		return nil, errors.New("parse kernel arguments: no key kargs")
	}
	var args []string
	for _, s := range *d.Kargs {
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, fmt.Errorf("parse kernel arguments: control character in %.80q", s)
		}
		args = append(args, Parse(s)...)
	}
	if d.Match != nil && !IsFor(*d.Match, arch) {
		return nil, nil
	}
	return args, nil
}

// checkKeys refuses a file with other keys than those of a dropIn, or with tables in their values. The decoder would do so,
// too, but in a time that grows with the square of their number.
func checkKeys(data []byte) error {
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		key := e.Key()
		key.Next()
		name := string(key.Node().Data)
		if e.Kind != unstable.KeyValue || !key.IsLast() || name != keyKargs && name != keyMatch {
			return fmt.Errorf("unknown key %.80q", name)
		}
		for v := e.Value().Children(); v.Next(); {
			if v.Node().Kind != unstable.String {
				return fmt.Errorf("%s is not a list of texts", name)
			}
		}
	}
	return nil // errors are the decoder's
}

// IsFor reports whether a list of architectures in bootc's configuration has an architecture. Each may have the name that
// Rust, Go or the kernel gives it.
func IsFor(names []string, arch string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return archName(name) == archName(arch) })
}

// archName returns Rust's name (std::env::consts::ARCH) for an architecture that Go or uname -m names.
func archName(name string) string {
	switch name {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "386", "i386", "i486", "i586", "i686":
		return "x86"
	case "armv6l", "armv7l", "armv8l":
		return "arm"
	case "ppc64", "ppc64le":
		return "powerpc64"
	case "loong64":
		return "loongarch64"
	}
	return name
}
