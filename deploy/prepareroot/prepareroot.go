// Package prepareroot reads the configuration of ostree-prepare-root(1), the program that turns a deployment into the root
// of the running system.
//
// The program reads the file in the initramfs, into which dracut and others copy it from the tree. So the file in the
// tree tells how a deployment of the tree boots.
package prepareroot

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

// ErrInvalid reports a file with which ostree-prepare-root would fail. The error's text says what is wrong.
var ErrInvalid = errors.New("invalid configuration of ostree-prepare-root")

// Files are the places of the configuration, below the root. The first file that exists is the whole configuration: it
// hides the other one.
var Files = []string{"etc/ostree/prepare-root.conf", "usr/lib/ostree/prepare-root.conf"}

// ImageConfig is the key in a commit's metadata of the configuration of the container image that the commit was made from.
// ostree-prepare-root verifies the signature of such a commit's parent if the commit has none.
const ImageConfig = "ostree.container.image-config"

// Composefs says whether a system's root is a composefs image.
type Composefs string

// The values of [Config.Composefs].
const (
	No    Composefs = "no"
	Maybe Composefs = "maybe" // if the deployment has an image
	Yes   Composefs = "yes"   // a deployment without an image does not boot
)

// Config is the configuration of ostree-prepare-root. The zero Config is none at all, like an empty file.
type Config struct {
	File      string    // the one of Files that has it; "" if there is none
	Composefs Composefs // "" is No
	Verity    bool      // the image must have fs-verity with the digest in its commit, and its files those in the image
	Signed    bool      // as Verity, and the commit must have a signature

	// TransientRoot makes a root that is a composefs image writable. Changes outside of /etc and /var are lost at reboot.
	TransientRoot bool
	// TransientEtc takes /etc from the tree at each boot. The deployment's own is unused.
	TransientEtc bool
	// ReadOnlySysroot mounts the physical root, with all deployments, read-only.
	ReadOnlySysroot bool
}

// Load reads the configuration of a tree. read returns the content of a file of the tree, by its path below the root; the
// error for a file that does not exist is an fs.ErrNotExist. A tree without configuration has the zero Config.
func Load(read func(name string) ([]byte, error)) (*Config, error) {
	for _, name := range Files {
		data, err := read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c, err := Parse(data)
		if err != nil {
			return nil, fmt.Errorf("/%s: %w", name, err)
		}
		c.File = name
		return c, nil
	}
	return new(Config), nil
}

// Parse parses a file. It accepts what ostree-prepare-root accepts; errors are an ErrInvalid.
func Parse(data []byte) (*Config, error) {
	c, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return c, nil
}

func parse(data []byte) (*Config, error) {
	f, err := keyfile.Parse(data)
	if err != nil {
		return nil, err
	}
	c := new(Config)
	if err := c.parseComposefs(f); err != nil {
		return nil, err
	}
	var readOnlyRoot bool // transient-ro: writable for a process that remounts it
	for _, b := range []struct {
		group, key string
		to         *bool
		fallback   bool
	}{
		{"root", "transient", &c.TransientRoot, false},
		{"root", "transient-ro", &readOnlyRoot, false},
		{"etc", "transient", &c.TransientEtc, false},
		{"sysroot", "readonly", &c.ReadOnlySysroot, c.Composefs == Yes},
	} {
		if *b.to, err = f.Bool(b.group, b.key, b.fallback); err != nil {
			return nil, err
		}
	}
	if c.TransientRoot && readOnlyRoot {
		return nil, errors.New("transient and transient-ro in group root exclude each other")
	}
	c.TransientRoot = c.TransientRoot || readOnlyRoot
	return c, nil
}

func (c *Config) parseComposefs(f *keyfile.File) error {
	v, ok := f.Get("composefs", "enabled")
	if !ok {
		return nil
	}
	switch v = strings.TrimSpace(v); v {
	case "verity":
		c.Composefs, c.Verity = Yes, true
	case "signed":
		c.Composefs, c.Verity, c.Signed = Yes, true, true
	default:
		if c.Composefs, ok = parseTristate(v); !ok {
			return fmt.Errorf("enabled in group composefs is %.20q", v)
		}
	}
	return nil
}

func parseTristate(v string) (Composefs, bool) {
	switch v {
	case "yes", "true", "1":
		return Yes, true
	case "maybe":
		return Maybe, true
	case "no", "false", "0":
		return No, true
	}
	return "", false
}

// Argument is the key of a kernel argument that overrides what files say of composefs.
const Argument = "ostree.prepare-root.composefs"

// Override returns the configuration of a system with a value of [Argument]. One with which ostree-prepare-root would
// fail is an ErrInvalid.
func (c *Config) Override(value string) (*Config, error) {
	o := *c
	o.Signed = value == "signed"
	if o.Signed {
		o.Composefs, o.Verity = Yes, true
		return &o, nil
	}
	var ok bool
	if o.Composefs, ok = parseTristate(value); !ok {
		return nil, fmt.Errorf("%w: kernel argument %s=%.20s", ErrInvalid, Argument, value)
	}
	o.Verity = o.Verity && o.Composefs != No
	return &o, nil
}
