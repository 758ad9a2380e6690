// Package selinux computes the SELinux labels of files by the policy inside a tree, as libselinux does on a host that runs
// this policy. It needs neither SELinux on the host nor libselinux, and reads the policy's text files only.
//
// The files are those of file_contexts(5): what decides is the text, not its compiled form file_contexts.bin. Versions of
// libselinux differ in rare cases; this package follows version 3.11 (see docs/design/selinux.md).
package selinux

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// ErrNoPolicy reports a tree without a policy, or whose configuration disables it. Its files have no labels.
var ErrNoPolicy = errors.New("no SELinux policy")

// ErrInvalid reports a policy that cannot be used. The error's text says which line of which file is wrong.
var ErrInvalid = errors.New("invalid SELinux policy")

// ReadFile returns the content of a file of a tree, by its path below the root without a leading slash. The error for a
// file that does not exist is an fs.ErrNotExist.
type ReadFile func(name string) ([]byte, error)

// MaxFile is the size of the largest text file of a policy that a ReadFile need return: those of distributions have less
// than a megabyte.
const MaxFile = 16 << 20

// Config is what libostree reads of /etc/selinux/config.
type Config struct {
	Mode string // "enforcing", "permissive" or "disabled"
	Type string // the name of the policy, "" if there is none
}

// ParseConfig parses the file. As in libostree, a key counts only at the very beginning of a line, the last one wins, and
// any mode but enforcing and permissive is disabled.
func ParseConfig(data []byte) Config {
	c := Config{Mode: "disabled"}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "SELINUXTYPE="); ok {
			c.Type = strings.TrimSpace(v)
		} else if v, ok := strings.CutPrefix(line, "SELINUX="); ok {
			c.Mode = parseMode(v)
		}
	}
	return c
}

func parseMode(value string) string {
	value = strings.ToLower(value)
	for _, mode := range []string{"enforcing", "permissive"} {
		if strings.HasPrefix(value, mode) {
			return mode
		}
	}
	return "disabled"
}

// Enabled reports whether files of a system with the configuration need labels.
func (c Config) Enabled() bool { return c.Mode != "disabled" && c.Type != "" }

// Load reads the policy of a tree below dir, which is usually "etc/selinux", or "usr/etc/selinux" in an OS commit. A tree
// whose files need no labels is an ErrNoPolicy, a policy that libselinux would not load an ErrInvalid.
func Load(read ReadFile, dir string) (*Policy, error) {
	data, err := read(path.Join(dir, "config"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no /%s/config", ErrNoPolicy, dir)
	}
	if err != nil {
		return nil, err
	}
	config := ParseConfig(data)
	switch {
	case !config.Enabled():
		return nil, fmt.Errorf("%w: /%s/config disables it", ErrNoPolicy, dir)
	case strings.Contains(config.Type, "/") || config.Type == "." || config.Type == "..":
		return nil, fmt.Errorf("%w: /%s/config: %q is not the name of a policy", ErrInvalid, dir, config.Type)
	}
	p := &Policy{Config: config, literals: make(map[string][]*spec), patterns: make(map[string][]*spec)}
	base := path.Join(dir, config.Type, "contexts/files/file_contexts")
	if err := p.load(read, base); err != nil {
		return nil, err
	}
	if _, ok := p.Lookup("/", fs.ModeDir); !ok {
		return nil, fmt.Errorf("%w: /%s has no label for /", ErrInvalid, base)
	}
	return p, nil
}

// load reads the files in the order of libselinux: later ones win.
func (p *Policy) load(read ReadFile, base string) error {
	for i, suffix := range []string{"", ".homedirs", ".local"} {
		name := base + suffix
		data, err := read(name)
		if errors.Is(err, fs.ErrNotExist) {
			if i == 0 {
				return fmt.Errorf("%w: there is no /%s", ErrInvalid, name)
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := p.addSpecs(i, "/"+name, data); err != nil {
			return err
		}
	}
	p.sort()
	for suffix, subs := range map[string]*[]substitution{".subs": &p.local, ".subs_dist": &p.dist} {
		data, err := read(base + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		*subs = parseSubstitutions(data)
	}
	return nil
}
