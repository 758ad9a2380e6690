package commitsig

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

// Where a host keeps what libostree reads, relative to its root.
const (
	remotesDir   = "etc/ostree/remotes.d"
	globalGPGDir = "usr/share/ostree/trusted.gpg.d"
)

// ed25519Dirs have the lists of ed25519 keys that remotes without keys of their own trust, and of those that none does.
var ed25519Dirs = []string{"etc/ostree", "usr/share/ostree"}

const (
	trustedKeys = "trusted.ed25519"
	revokedKeys = "revoked.ed25519"
)

// Limits of a host's configuration.
const (
	maxFile  = 10 << 20 // bytes
	maxFiles = 1024     // of a directory
)

// signEd25519 is the name of ed25519 signatures in a remote's configuration.
const signEd25519 = "ed25519"

// Kinds of errors of [Load].
var (
	// ErrNoRemote: a host has no such remote.
	ErrNoRemote = errors.New("no such ostree remote")
	// ErrRemote: the configuration or the keys of a remote cannot be used.
	ErrRemote = errors.New("ostree remote cannot be used")
)

// A Host is where remotes and keys are found.
type Host struct {
	Root fs.FS // the root of the running system, with etc/ostree and usr/share/ostree
	Repo fs.FS // the directory of an ostree repository; nil for none
}

// A Remote is an ostree remote whose keys sign commits.
type Remote struct {
	Name string

	gpg     bool // an OpenPGP signature is demanded
	sign    bool // an ed25519 signature is demanded
	keyring openpgp.EntityList
	keys    []ed25519.PublicKey // without revoked ones
	revoked []ed25519.PublicKey
}

// A loader reads the configuration of a remote.
type loader struct {
	Host
	*Remote
	file  *keyfile.File
	group string
}

// Load reads the configuration and the keys of a remote. The configuration is in the repository's config or in
// /etc/ostree/remotes.d. It demands an OpenPGP signature unless it has gpg-verify=false, and an ed25519 signature if it
// has sign-verify; a remote that demands neither is an error.
//
// OpenPGP keys are those of NAME.trustedkeys.gpg in the repository or in /etc/ostree/remotes.d, without it those in
// /usr/share/ostree/trusted.gpg.d, and in either case those that gpgkeypath lists. Keys for ed25519 are those of
// verification-ed25519-key and verification-ed25519-file; without either, those that trusted.ed25519 and the files in
// trusted.ed25519.d list, in /etc/ostree and /usr/share/ostree. A key that revoked.ed25519 or a file in
// revoked.ed25519.d lists is not used, wherever it comes from.
//
// Errors are ErrNoRemote or ErrRemote.
func Load(h Host, name string) (*Remote, error) {
	r, err := load(h, name)
	if err != nil && !errors.Is(err, ErrNoRemote) {
		err = fmt.Errorf("%w: %s: %w", ErrRemote, name, err)
	}
	return r, err
}

func load(h Host, name string) (*Remote, error) {
	l := &loader{Host: h, Remote: &Remote{Name: name}, group: fmt.Sprintf("remote %q", name)}
	if err := l.find(); err != nil {
		return nil, err
	}
	verify, err := l.file.Bool(l.group, "gpg-verify", true)
	if err != nil {
		return nil, err
	}
	if l.gpg = verify; l.gpg {
		if err := l.loadKeyring(); err != nil {
			return nil, err
		}
	}
	if err := l.loadSign(); err != nil {
		return nil, err
	}
	if !l.gpg && !l.sign {
		return nil, errors.New("it demands no signature: gpg-verify is false, and sign-verify is not set")
	}
	return l.Remote, nil
}

// find finds the file with the remote's group.
func (l *loader) find() error {
	if l.Name == "" || strings.ContainsAny(l.Name, "/\"]\n") {
		return fmt.Errorf("%w: %q is not the name of a remote", ErrNoRemote, l.Name)
	}
	type place struct {
		fsys fs.FS
		name string
	}
	var places []place
	if l.Repo != nil {
		places = append(places, place{l.Repo, "config"})
	}
	names, err := dirFiles(l.Root, remotesDir, ".conf")
	if err != nil {
		return err
	}
	for _, name := range names {
		places = append(places, place{l.Root, name})
	}
	found := ""
	for _, p := range places {
		data, err := readFile(p.fsys, p.name)
		if err != nil {
			return err
		}
		f, err := keyfile.Parse(data)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if !f.HasGroup(l.group) {
			continue
		}
		if found != "" {
			return fmt.Errorf("it is in both %s and %s", found, p.name)
		}
		found, l.file = p.name, f
	}
	if found == "" {
		return fmt.Errorf("%w: %s is neither in /%s nor in the repository's config", ErrNoRemote, l.Name, remotesDir)
	}
	return nil
}

// get returns a value of the remote.
func (l *loader) get(key string) string {
	v, _ := l.file.Get(l.group, key)
	return v
}

func (l *loader) loadSign() error {
	switch v := strings.TrimSpace(l.get("sign-verify")); v {
	case "", "false", "0":
		return nil
	case "true", "1":
	default:
		if !slices.Contains(splitList(v), signEd25519) {
			return fmt.Errorf("sign-verify=%.80q: only %s signatures can be verified", v, signEd25519)
		}
	}
	l.sign = true
	file, key := l.get("verification-ed25519-file"), l.get("verification-ed25519-key")
	var err error
	if file != "" {
		if l.keys, err = l.keyFile(file); err != nil {
			return err
		}
	}
	if key != "" {
		k, err := parseKey(key)
		if err != nil {
			return fmt.Errorf("verification-ed25519-key: %w", err)
		}
		l.keys = append(l.keys, k)
	}
	if file == "" && key == "" {
		if l.keys, err = l.listed(trustedKeys); err != nil {
			return err
		}
	}
	if l.revoked, err = l.listed(revokedKeys); err != nil {
		return err
	}
	if len(l.keys) == 0 {
		return fmt.Errorf("it demands an ed25519 signature, and there is no key: neither in its configuration nor in /etc/ostree/%s", trustedKeys)
	}
	return nil
}

// keyFile reads the ed25519 keys of a file that the remote names.
func (l *loader) keyFile(name string) ([]ed25519.PublicKey, error) {
	at, err := inRoot(name)
	if err != nil {
		return nil, err
	}
	data, err := readFile(l.Root, at)
	if err != nil {
		return nil, err
	}
	keys := parseKeys(data)
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s has no ed25519 key", name)
	}
	return keys, nil
}

// listed reads the ed25519 keys of the host's lists with a name.
func (l *loader) listed(name string) (keys []ed25519.PublicKey, err error) {
	for _, dir := range ed25519Dirs {
		files, err := dirFiles(l.Root, path.Join(dir, name+".d"), "")
		if err != nil {
			return nil, err
		}
		for _, f := range append([]string{path.Join(dir, name)}, files...) {
			data, err := readFile(l.Root, f)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			keys = append(keys, parseKeys(data)...)
		}
	}
	return keys, nil
}

func (l *loader) loadKeyring() error {
	data, err := l.ownKeyring()
	if err != nil {
		return err
	}
	paths := splitList(l.get("gpgkeypath"))
	if data != nil {
		if err := l.addKeys(l.Name+keyringExt, data); err != nil {
			return err
		}
	}
	for _, p := range paths {
		if err := l.addKeyPath(p); err != nil {
			return err
		}
	}
	if data == nil {
		names, err := dirFiles(l.Root, globalGPGDir, ".gpg")
		if err != nil {
			return err
		}
		if err := l.addKeyFiles(names...); err != nil {
			return err
		}
	}
	if len(l.keyring) == 0 {
		return fmt.Errorf("it demands an OpenPGP signature, and there is no key: import one with \"ostree remote gpg-import\", or set gpgkeypath")
	}
	return nil
}

const keyringExt = ".trustedkeys.gpg"

// ownKeyring returns the keyring that is the remote's alone, nil if it has none.
func (l *loader) ownKeyring() ([]byte, error) {
	if l.Repo != nil {
		data, err := readFile(l.Repo, l.Name+keyringExt)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	data, err := readFile(l.Root, path.Join(remotesDir, l.Name+keyringExt))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// addKeyPath adds the keys of a file, or of all files in a directory, that gpgkeypath names.
func (l *loader) addKeyPath(name string) error {
	at, err := inRoot(name)
	if err != nil {
		return fmt.Errorf("gpgkeypath: %w", err)
	}
	st, err := fs.Stat(l.Root, at)
	if err != nil {
		return fmt.Errorf("gpgkeypath: %w", err)
	}
	if !st.IsDir() {
		return l.addKeyFiles(at)
	}
	names, err := dirFiles(l.Root, at, "")
	if err != nil {
		return fmt.Errorf("gpgkeypath: %w", err)
	}
	return l.addKeyFiles(names...)
}

func (l *loader) addKeyFiles(names ...string) error {
	for _, name := range names {
		data, err := readFile(l.Root, name)
		if err != nil {
			return err
		}
		if err := l.addKeys("/"+name, data); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) addKeys(name string, data []byte) error {
	keys, err := parseKeyring(data)
	if err != nil {
		return fmt.Errorf("read OpenPGP keys of %s: %w", name, err)
	}
	l.keyring = append(l.keyring, keys...)
	return nil
}

// splitList splits a list as libostree does: by semicolons if there are any, else by commas.
func splitList(text string) (list []string) {
	sep := ","
	if strings.Contains(text, ";") {
		sep = ";"
	}
	for item := range strings.SplitSeq(text, sep) {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// inRoot returns the name in a root of an absolute path.
func inRoot(name string) (string, error) {
	if !path.IsAbs(name) {
		return "", fmt.Errorf("path %q is not absolute", name)
	}
	return cmp.Or(strings.TrimPrefix(path.Clean(name), "/"), "."), nil
}

// dirFiles returns the names of the regular files in a directory with an ending, sorted; none if it does not exist. As in
// libostree, symbolic links do not count.
func dirFiles(fsys fs.FS, dir, ext string) (names []string, err error) {
	entries, err := fs.ReadDir(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasSuffix(e.Name(), ext) {
			names = append(names, path.Join(dir, e.Name()))
		}
	}
	if len(names) > maxFiles {
		return nil, fmt.Errorf("/%s has %d files, at most %d are allowed", dir, len(names), maxFiles)
	}
	return names, nil
}

// readFile reads a regular file.
func readFile(fsys fs.FS, name string) (_ []byte, err error) {
	st, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	return data, nil
}
