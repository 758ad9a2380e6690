package plugin

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/pelletier/go-toml/v2"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// DefaultConfigFile is the configuration file that the daemon reads unless another is named.
const DefaultConfigFile = "/etc/ostree-snapshotter/config.toml"

// configVersion is the version of the configuration format.
const configVersion = 1

// Durability controls when a committed snapshot is safe on the disk.
type Durability string

const (
	// DurabilityJournal lists layers that are not on the disk yet, so that the next start finds damage by a power
	// failure.
	DurabilityJournal Durability = "journal"
	// DurabilitySync writes everything before a snapshot is committed.
	DurabilitySync Durability = "sync"
)

// Config is the daemon's configuration. The comments in its tags are the users' documentation.
type Config struct {
	Version int `toml:"version" comment:"Configuration of ostree-snapshotter. Every key is shown with its default.\n\nFormat of this file. Required."`

	Root       string   `toml:"root" comment:"Directory of the store: repository, checkouts, snapshots. Its file system needs extended attributes and hard\nlinks, and must be able to hold the upper directory of an overlay mount: ext4, xfs, btrfs."`
	Repo       string   `toml:"repo" comment:"Directory of the ostree repository, on the same file system as root. Empty: \"repo\" below root. Any other\nrepository, such as /ostree/repo, must exist and have mode bare."`
	SharedRepo bool     `toml:"shared_repo" comment:"Accept a repo in which users of the host can reach files, as ostree creates /ostree/repo. Files of images that\nbelong to a user ID of the host can then be changed by that user, for all images that have them."`
	DedupRepos []string `toml:"dedup_repos" comment:"Directories of other ostree repositories on the same file system, such as the host's own /ostree/repo. A file that\none of them has is linked instead of stored a second time. It is compared before it is linked, and used only if root\nalone can change it. With mtime \"exact\" and without reflinks, only files with the same time are shared."`
	Address    string   `toml:"address" comment:"Unix socket for containerd's proxy_plugins. systemd can pass it instead (socket activation)."`

	Checkout   Checkout    `toml:"checkout" comment:"How containers get the files of their layers. \"composefs\": one image of the container's whole root file\nsystem, mounted over the objects. It needs EROFS and overlayfs of Linux 6.5 or later, and shows exactly the inodes,\nlinks and times of the layers. \"hardlink\": a directory of hard links for each layer. \"auto\": composefs if the\nkernel supports it, else hard links. It can be changed at any time; running containers keep what they have."`
	Verity     Verity      `toml:"verity" comment:"fs-verity, for composefs. Files get fs-verity when they are stored, and images record their digests: a file that was\ndamaged on the disk or replaced cannot be read. Unpacking becomes slower, and each file takes a block or two more.\n\"require\": do not start without it. \"auto\": use it where the file system supports it. \"off\": do not use it. The\nsetting is also in the repository's own configuration, as fsverity of ex-integrity, for ostree(1). In containers that\nexist when it is switched on, files that they have written to are not checked, and files of which they have changed only\nthe mode cannot be read until it is switched off."`
	Mtime      layer.Mtime `toml:"mtime" comment:"With hard links: how to handle a file whose content is stored already, but with another modification time.\n\"exact\": store a copy (a reflink where the file system supports it). \"canonical\": share the file, and show the\nother time: Python then recompiles its modules at each start."`
	Durability Durability  `toml:"durability" comment:"\"journal\": write layers to the disk in the background, and list them in a journal until they are there. After a\npower failure, damaged layers are found at the next start and rebuilt from containerd's blobs. \"sync\": write\neverything to the disk before a snapshot is committed, which makes pulls slower."`

	ShareNamespaces bool `toml:"share_namespaces" comment:"Let a namespace of containerd use the layers that another one has unpacked, without fetching their blobs. Such\nimages run, but cannot be pushed, saved or converted there. Anyone who can pull in some namespace and knows the\ndiff IDs of an image can then read its files, without access to its registry."`
	SkipDownload    bool `toml:"skip_download" comment:"Do not download layers that the store has already, in whatever namespace. The images run, but cannot be pushed,\nsaved or converted, because containerd does not have their blobs. What share_namespaces says about diff IDs applies\nhere too. Needs containerd 2.4 or later; has no effect otherwise."`

	Containerd ContainerdConfig `toml:"containerd"`
	Import     ImportConfig     `toml:"import"`
	Cleanup    CleanupConfig    `toml:"cleanup"`
	Log        LogConfig        `toml:"log"`

	// Removed lists the keys of the file that once had a meaning, and have none any more.
	Removed []string `toml:"-"`
}

// ContainerdConfig locates containerd.
type ContainerdConfig struct {
	Address     string `toml:"address" comment:"Socket of the containerd that this daemon serves."`
	ContentRoot string `toml:"content_root" comment:"Directory of containerd's content store, from which blobs are read. Empty: ask containerd."`
}

// ImportConfig limits the resources for unpacking layers.
type ImportConfig struct {
	Workers     int  `toml:"workers" comment:"Goroutines that write files. 0: one for each processor."`
	Memory      Size `toml:"memory" comment:"Part of the tar of one layer held in memory at once: at least 2MiB, and at most an eighth of total_memory,\nwhatever this says."`
	TotalMemory Size `toml:"total_memory" comment:"Memory that all layers that are being unpacked take together. Those that need more wait for the others; one that\nneeds more than about three quarters of it is refused. 0: a quarter of the machine's memory, or of the limit of the\ndaemon's control group."`
	MaxEntries  int  `toml:"max_entries" comment:"Entries that a layer may have. Unpacking a layer with a million entries takes 1.2 GB of memory."`
}

// CleanupConfig controls the removal of images.
type CleanupConfig struct {
	WaitAbove int `toml:"wait_above" comment:"Removing an image waits only until its layers are forgotten. Their files are removed in the background, after any\npull; \"df\" shows what is left. If more than this percentage of the file system is used, in blocks or in inodes, it waits\nfor that too: kubelet looks at the free space as soon as it has removed an image. 0: always. 100: never."`
}

// LogConfig controls the daemon's log on standard error.
type LogConfig struct {
	Level  string `toml:"level" comment:"\"trace\", \"debug\", \"info\", \"warn\" or \"error\"."`
	Format string `toml:"format" comment:"\"text\" or \"json\"."`
}

// Size is a number of bytes, written with a unit.
type Size int64

// MarshalText writes the size with the largest binary unit that divides it.
func (s Size) MarshalText() ([]byte, error) {
	for shift, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		next := int64(1) << (10 * (shift + 1))
		if int64(s)%next != 0 || s == 0 || unit == "GiB" {
			return fmt.Appendf(nil, "%d%s", int64(s)>>(10*shift), unit), nil
		}
	}
	panic("unreachable")
}

// UnmarshalText reads a size like "64MiB", "100MB" or "1048576".
func (s *Size) UnmarshalText(b []byte) error {
	n, err := humanize.ParseBytes(string(b))
	if err != nil || n > math.MaxInt64 {
		return fmt.Errorf("%q is not a size like \"64MiB\"", b)
	}
	*s = Size(n)
	return nil
}

// LogLevels are the values of the key log.level.
var LogLevels = []string{"trace", "debug", "info", "warn", "error"}

// DefaultConfig returns the configuration with every key at its default.
func DefaultConfig() *Config {
	return &Config{
		Version:    configVersion,
		Root:       "/var/lib/ostree-snapshotter",
		DedupRepos: []string{},
		Address:    "/run/ostree-snapshotter/ostree-snapshotter.sock",
		Checkout:   CheckoutAuto,
		Verity:     VerityOff,
		Mtime:      layer.MtimeExact,
		Durability: DurabilityJournal,
		Containerd: ContainerdConfig{Address: "/run/containerd/containerd.sock"},
		Import:     ImportConfig{Memory: 4 << 20, MaxEntries: 1 << 20},
		Cleanup:    CleanupConfig{WaitAbove: 80},
		Log:        LogConfig{Level: "info", Format: "text"},
	}
}

// A ConfigError reports a configuration file that cannot be used.
type ConfigError struct {
	File string
	Err  error // with the line and key, if known; an fs.PathError if the file cannot be read
}

func (e *ConfigError) Error() string {
	var pe *fs.PathError
	if errors.As(e.Err, &pe) {
		return fmt.Sprintf("read configuration: %v", e.Err) // it has the name
	}
	return fmt.Sprintf("read configuration %s: %v", e.File, e.Err)
}

func (e *ConfigError) Unwrap() error { return e.Err }

// LoadConfig reads a configuration file. For "" it returns the defaults. The error is a [ConfigError].
func LoadConfig(name string) (*Config, error) {
	if name == "" {
		return DefaultConfig(), nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, &ConfigError{name, err}
	}
	c, err := ParseConfig(b)
	if err != nil {
		return nil, &ConfigError{name, err}
	}
	return c, nil
}

// A configFile has the keys of a file: those of the configuration, and removed ones.
type configFile struct {
	*Config
	Decompress struct {
		Gzip *string `toml:"gzip"` // chose between igzip and the built-in gzip
	} `toml:"decompress"`
}

// ParseConfig parses a configuration. Missing keys have their defaults; unknown keys are errors, but removed ones are
// not.
func ParseConfig(b []byte) (*Config, error) {
	c := DefaultConfig()
	c.Version = 0
	file := configFile{Config: c}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, positioned(err)
	}
	if file.Decompress.Gzip != nil {
		c.Removed = append(c.Removed, "decompress.gzip")
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// positioned returns an error of the TOML parser with its line and key.
func positioned(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var errs []error
		for _, e := range strict.Errors {
			line, _ := e.Position()
			errs = append(errs, fmt.Errorf("line %d: unknown key %q", line, strings.Join(e.Key(), ".")))
		}
		return joinLine(errs)
	}
	var syntax *toml.DecodeError
	if errors.As(err, &syntax) {
		line, _ := syntax.Position()
		text := goField.ReplaceAllString(strings.TrimPrefix(syntax.Error(), "toml: "), "")
		if key := strings.Join(syntax.Key(), "."); key != "" {
			return fmt.Errorf("line %d: key %q: %s", line, key, text)
		}
		return fmt.Errorf("line %d: %s", line, text)
	}
	return err
}

// goField matches the part of a TOML type error that names a Go type instead of the file.
var goField = regexp.MustCompile(`struct field \S+ of type `)

// joinLine joins errors into one line.
func joinLine(errs []error) error {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

// Validate returns an error that names the first key with an invalid value.
func (c *Config) Validate() error {
	for _, v := range []struct {
		ok   bool
		key  string
		got  any
		want string
	}{
		{c.Version == configVersion, "version", c.Version, "must be 1"},
		{filepath.IsAbs(c.Root), "root", c.Root, "must be an absolute path"},
		{c.Repo == "" || filepath.IsAbs(c.Repo), "repo", c.Repo, "must be an absolute path or empty"},
		{!slices.ContainsFunc(c.DedupRepos, isNotAbs), "dedup_repos", c.DedupRepos, "must be absolute paths"},
		{filepath.IsAbs(c.Address), "address", c.Address, "must be an absolute path"},
		{oneOf(string(c.Checkout), string(CheckoutAuto), string(CheckoutComposefs), string(CheckoutHardlink)), "checkout", c.Checkout, `must be "auto", "composefs" or "hardlink"`},
		{oneOf(string(c.Verity), string(VerityOff), string(VerityAuto), string(VerityRequire)), "verity", c.Verity, `must be "off", "auto" or "require"`},
		{c.Verity != VerityRequire || c.Checkout != CheckoutHardlink, "verity", c.Verity, `needs checkouts that are composefs images, not key "checkout" = "hardlink"`},
		{c.Mtime == layer.MtimeExact || c.Mtime == layer.MtimeCanonical, "mtime", c.Mtime, `must be "exact" or "canonical"`},
		{c.Durability == DurabilityJournal || c.Durability == DurabilitySync, "durability", c.Durability, `must be "journal" or "sync"`},
		{filepath.IsAbs(c.Containerd.Address), "containerd.address", c.Containerd.Address, "must be an absolute path"},
		{c.Containerd.ContentRoot == "" || filepath.IsAbs(c.Containerd.ContentRoot), "containerd.content_root", c.Containerd.ContentRoot, "must be an absolute path or empty"},
		{c.Import.Workers >= 0, "import.workers", c.Import.Workers, "must not be negative"},
		{c.Import.Memory >= 1<<20, "import.memory", c.Import.Memory, "must be at least 1MiB"},
		{c.Import.TotalMemory == 0 || c.Import.TotalMemory >= minTotalMemory, "import.total_memory", c.Import.TotalMemory, "must be 0 or at least 64MiB"},
		{c.Import.MaxEntries > 0, "import.max_entries", c.Import.MaxEntries, "must be positive"},
		{c.Cleanup.WaitAbove >= 0 && c.Cleanup.WaitAbove <= 100, "cleanup.wait_above", c.Cleanup.WaitAbove, "must be a percentage from 0 to 100"},
		{oneOf(c.Log.Level, LogLevels...), "log.level", c.Log.Level, `must be "trace", "debug", "info", "warn" or "error"`},
		{oneOf(c.Log.Format, "text", "json"), "log.format", c.Log.Format, `must be "text" or "json"`},
	} {
		if !v.ok {
			return fmt.Errorf("key %q is %#v: %s", v.key, v.got, v.want)
		}
	}
	return nil
}

func isNotAbs(name string) bool { return !filepath.IsAbs(name) }

func oneOf(s string, values ...string) bool { return slices.Contains(values, s) }

// Encode returns the configuration as TOML, each key documented by a comment above it.
func (c *Config) Encode() ([]byte, error) {
	b, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	var out bytes.Buffer
	above := "["
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, " \n")
		if strings.HasPrefix(line, "#") && above != "" && !strings.HasPrefix(above, "#") && !strings.HasPrefix(above, "[") {
			out.WriteByte('\n')
		}
		out.WriteString(line + "\n")
		above = line
	}
	return out.Bytes(), nil
}

// RepoPath returns the directory of the repository.
func (c *Config) RepoPath() string {
	if c.Repo != "" {
		return c.Repo
	}
	return filepath.Join(c.Root, repoDir)
}
