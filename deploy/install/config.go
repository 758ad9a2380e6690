package install

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
)

// ConfigDirs are the directories of an OS with the files of its [Config]. Their names end in .toml
// and do not begin with a dot.
var ConfigDirs = []string{"usr/lib/bootc/install", "usr/local/lib/bootc/install", "etc/bootc/install"}

// MaxConfig is the largest file that [Config.Merge] reads, in bytes.
// The decoder's time grows with the square of the number of unknown keys.
const MaxConfig = 16 << 10

// maxConfigKargs bounds the kernel arguments of all files.
const maxConfigKargs = 256

// Config is what an OS asks of its installation. The zero Config asks for nothing.
type Config struct {
	Filesystem    string     // of the root partition; "" for any
	Stateroot     string     // "" for any
	Kargs         kargs.List // of the machine, in addition to those that the OS itself needs
	ExceptDefault string     // a line for all boot entries but the default one; "" for none
	Blocks        []string   // kinds of disks that may be made, the preferred one first; nil for any
	Ignored       []string   // keys that have no effect here

	rootType bool // Filesystem is from the newer of its two keys
}

// configFile is a file of the configuration, as bootc-install-config(5) describes it.
type configFile struct {
	Install struct {
		Match      *[]string `toml:"match-architectures"`
		RootFSType string    `toml:"root-fs-type"`
		Filesystem struct {
			Root struct {
				Type string `toml:"type"`
			} `toml:"root"`
		} `toml:"filesystem"`
		Stateroot  string    `toml:"stateroot"`
		Kargs      []string  `toml:"kargs"`
		Block      *[]string `toml:"block"`
		Bootloader string    `toml:"bootloader"`
		OSTree     struct {
			ExceptDefault string `toml:"bls-append-except-default"`
		} `toml:"ostree"`
	} `toml:"install"`
}

// ConfigFiles returns the files of an OS's configuration in the order in which they are merged, that of their names. Of
// files with one name, that in the last directory counts. list returns the names in a directory.
func ConfigFiles(list func(dir string) []string) []string {
	byName := make(map[string]string)
	for _, dir := range ConfigDirs {
		for _, name := range list(dir) {
			if path.Ext(name) == ".toml" && name[0] != '.' {
				byName[name] = path.Join(dir, name)
			}
		}
	}
	files := make([]string, 0, len(byName))
	for _, file := range byName {
		files = append(files, file)
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(path.Base(a), path.Base(b)) })
	return files
}

// Merge adds a file to the configuration of an OS for an architecture, as Go names it. Later values replace earlier
// ones; kernel arguments are added. Unlike bootc it ignores keys that it does not know.
func (c *Config) Merge(data []byte, arch string) error {
	if len(data) > MaxConfig {
		return fmt.Errorf("more than %d bytes", MaxConfig)
	}
	var f configFile
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&f)
	var unknown *toml.StrictMissingError
	if err != nil && !errors.As(err, &unknown) {
		return decodeError(err)
	}
	in := &f.Install
	if in.Match != nil && !kargs.IsFor(*in.Match, arch) {
		return nil
	}
	if unknown != nil {
		for _, e := range unknown.Errors {
			c.Ignored = append(c.Ignored, fmt.Sprintf("%.80s", strings.Join(e.Key(), ".")))
		}
	}
	if b := in.Bootloader; b != "" && b != "systemd" {
		c.Ignored = append(c.Ignored, "install.bootloader")
	}
	c.mergeFilesystem(in.Filesystem.Root.Type, in.RootFSType)
	c.Stateroot = cmp.Or(in.Stateroot, c.Stateroot)
	if in.Block != nil {
		c.Blocks = *in.Block
	}
	c.ExceptDefault = cmp.Or(in.OSTree.ExceptDefault, c.ExceptDefault)
	if err := checkText(c.ExceptDefault); err != nil {
		return err
	}
	return c.addKargs(in.Kargs)
}

// decodeError names the place of a value of the wrong type. The decoder's own text names Go types.
func decodeError(err error) error {
	var e *toml.DecodeError
	if !errors.As(err, &e) || len(e.Key()) == 0 || !strings.Contains(e.Error(), "cannot decode") {
		return err
	}
	line, _ := e.Position()
	return fmt.Errorf("line %d: %.80s: value of the wrong type", line, strings.Join(e.Key(), "."))
}

// mergeFilesystem sets the file system of the root partition, which has two keys. The newer one wins, in whatever file.
func (c *Config) mergeFilesystem(newer, older string) {
	switch {
	case newer != "":
		c.Filesystem, c.rootType = newer, true
	case older != "" && !c.rootType:
		c.Filesystem = older
	}
}

func (c *Config) addKargs(texts []string) error {
	for _, text := range texts {
		if err := checkText(text); err != nil {
			return err
		}
		for _, arg := range kargs.Parse(text) {
			if kargs.Sets(arg, "ostree") {
				return fmt.Errorf("kernel argument %q cannot be set", arg)
			}
			c.Kargs = append(c.Kargs, arg)
		}
	}
	if len(c.Kargs) > maxConfigKargs {
		return fmt.Errorf("more than %d kernel arguments", maxConfigKargs)
	}
	return nil
}

// checkText refuses what a boot entry cannot hold.
func checkText(text string) error {
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("control character in %.80q", text)
	}
	return nil
}
