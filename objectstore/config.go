package objectstore

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Mode is how a repository stores content objects; the value is that of the key mode of its config.
type Mode string

// ModeBare stores a content object as a file with its owner, mode and extended attributes. It is the only mode that
// this package works on.
const ModeBare Mode = "bare"

const (
	maxConfigLen = 1 << 20

	defaultLockTimeout = 300 * time.Second // as libostree since 2023.6
	defaultTmpExpiry   = 24 * time.Hour
	forever            = time.Duration(-1)
)

// config is what this package reads from the file config of a repository.
type config struct {
	mode        string
	parent      string
	locking     bool
	lockTimeout time.Duration // forever: no limit
	tmpExpiry   time.Duration
	noXattrs    bool
	tombstones  bool
}

// parseConfig parses the text of a config file. Keys that it does not know are left to those who do.
func parseConfig(text string) (*config, error) {
	f, err := parseKeyFile(text)
	if err != nil {
		return nil, fmt.Errorf("parse config: %w", err)
	}
	core := f["core"]
	if v := core["repo_version"]; v != "1" {
		return nil, corruptf("parse config: repo_version is %.20q, only \"1\" exists", v)
	}
	c := &config{mode: core.str("mode", string(ModeBare)), parent: core["parent"]}
	c.locking, err = core.boolean("locking", true)
	if err == nil {
		c.lockTimeout, err = core.seconds("lock-timeout-secs", defaultLockTimeout)
	}
	if err == nil {
		c.tmpExpiry, err = core.seconds("tmp-expiry-secs", defaultTmpExpiry)
	}
	if err == nil {
		c.noXattrs, err = core.boolean("disable-xattrs", false)
	}
	if err == nil {
		c.tombstones, err = core.boolean("tombstone-commits", false)
	}
	if err != nil {
		return nil, fmt.Errorf("parse config: %w", err)
	}
	return c, nil
}

// supported refuses repositories on which this package would do the wrong thing.
func (c *config) supported(path string) error {
	switch {
	case c.mode != string(ModeBare):
		return &UnsupportedModeError{Path: path, Mode: c.mode}
	case c.parent != "":
		return &UnsupportedConfigError{
			Path: path, Key: "core/parent", Value: c.parent,
			Hint: "objects of a parent repository are not looked up; copy them with \"ostree pull-local\" and remove the key",
		}
	case c.noXattrs:
		return &UnsupportedConfigError{
			Path: path, Key: "core/disable-xattrs", Value: "true",
			Hint: "files of container images need their extended attributes; use another repository",
		}
	}
	return nil
}

// keyGroup is a group of a key file.
type keyGroup map[string]string

func (g keyGroup) str(key, fallback string) string {
	if v, ok := g[key]; ok {
		return v
	}
	return fallback
}

// boolean reads a boolean as GKeyFile does.
func (g keyGroup) boolean(key string, fallback bool) (bool, error) {
	v, ok := g[key]
	switch {
	case !ok:
		return fallback, nil
	case v == "true" || v == "1":
		return true, nil
	case v == "false" || v == "0":
		return false, nil
	}
	return false, corruptf("%s is %.20q, neither true nor false", key, v)
}

// seconds reads a number of seconds, -1 for ever.
func (g keyGroup) seconds(key string, fallback time.Duration) (time.Duration, error) {
	v, ok := g[key]
	if !ok {
		return fallback, nil
	}
	const limit = 1 << 31 // 68 years
	n, err := strconv.ParseInt(v, 10, 64)
	switch {
	case err != nil || n < -1 || n > limit:
		return 0, corruptf("%s is %.20q, not a number of seconds", key, v)
	case n == -1:
		return forever, nil
	}
	return time.Duration(n) * time.Second, nil
}

// parseKeyFile parses the format of GKeyFile: groups in brackets, "key = value" with escapes, comments after "#". A
// group that occurs twice is merged, of a key that occurs twice the last one counts.
func parseKeyFile(text string) (map[string]keyGroup, error) {
	groups := make(map[string]keyGroup)
	var group keyGroup
	line := 0
	for raw := range strings.SplitSeq(text, "\n") {
		line++
		l := strings.TrimSpace(raw)
		switch {
		case l == "" || l[0] == '#':
		case !utf8.ValidString(l) || strings.IndexByte(l, 0) >= 0:
			return nil, corruptf("line %d: not UTF-8", line)
		case l[0] == '[':
			name, ok := strings.CutSuffix(l[1:], "]")
			if !ok || name == "" || strings.ContainsAny(name, "[]") {
				return nil, corruptf("line %d: not a group: %.80q", line, l)
			}
			if group = groups[name]; group == nil {
				group = make(keyGroup)
				groups[name] = group
			}
		default:
			key, value, ok := strings.Cut(l, "=")
			key = strings.TrimSpace(key)
			if !ok || key == "" || group == nil {
				return nil, corruptf("line %d: neither a group nor a key of one: %.80q", line, l)
			}
			v, err := unescapeValue(strings.TrimSpace(value))
			if err != nil {
				return nil, corruptf("line %d: %v", line, err)
			}
			group[key] = v
		}
	}
	return groups, nil
}

func unescapeValue(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i++; i == len(s) {
			return "", fmt.Errorf("value ends in a backslash")
		}
		switch s[i] {
		case 's':
			b.WriteByte(' ')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case '\\':
			b.WriteByte('\\')
		default: // list separators and what a later version may add: kept for the reader of the key
			b.WriteByte('\\')
			b.WriteByte(s[i])
		}
	}
	return b.String(), nil
}
