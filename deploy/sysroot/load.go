package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Load reads the state. A state that libostree would not leave behind, not even when killed, is an ErrCorrupt: above
// all an entry of boot/loader that leads to no deployment. Files among the entries that are too long, no regular files
// or under a name that libostree does not give are left out, and listed in the state's notes.
func (s *Sysroot) Load(ctx context.Context) (*State, error) {
	st, err := s.load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load sysroot %s: %w", s.dir.Path(), err)
	}
	return st, nil
}

func (s *Sysroot) load(ctx context.Context) (*State, error) {
	st := &State{}
	var err error
	if st.BootVersion, err = s.bootVersion(); err != nil {
		return nil, err
	}
	if st.SubBootVersion, err = s.subBootVersion(st.BootVersion); err != nil {
		return nil, err
	}
	entries, skipped, err := s.readEntries(st.BootVersion)
	if err != nil {
		return nil, err
	}
	st.skip(skipped...)
	booted, err := s.findBooted()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		d, err := s.readDeployment(e, st)
		switch {
		case errors.Is(err, ErrCorrupt) && !isOwnEntry(e.Name):
			st.skip(skippedEntry{e.file, err.Error(), false})
			continue
		case err != nil:
			return nil, fmt.Errorf("boot loader entry %s: %w", e.Name, err)
		}
		if d == nil {
			continue
		}
		if booted != nil && st.Booted == nil {
			is, err := s.isInode(d.Path(), booted)
			if err != nil {
				return nil, err
			}
			if is {
				st.Booted = d
			}
		}
		st.Deployments = append(st.Deployments, d)
	}
	if err := s.readTries(ctx, st); err != nil {
		return nil, err
	}
	st.Staged, err = s.readStaged(st)
	return st, err
}

// bootVersion returns the B that boot/loader leads to, or 0 before there is one.
func (s *Sysroot) bootVersion() (int, error) { return switchValue(s.boot.Readlink, "loader", "loader") }

// subBootVersion returns the S that ostree/boot.B leads to, or 0 before there is one.
func (s *Sysroot) subBootVersion(b int) (int, error) {
	name := "boot." + strconv.Itoa(b)
	return switchValue(s.dir.Readlink, path.Join(ostreeDir, name), name)
}

// switchValue reads a symbolic link to prefix.0 or prefix.1.
func switchValue(readlink func(string) (string, error), name, prefix string) (int, error) {
	target, err := readlink(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case errors.Is(err, unix.EINVAL):
		return 0, fmt.Errorf("%s is not a symbolic link: %w", name, ErrCorrupt)
	case err != nil:
		return 0, err
	case target == prefix+".0":
		return 0, nil
	case target == prefix+".1":
		return 1, nil
	}
	return 0, fmt.Errorf("%s leads to %.100q: %w", name, target, ErrCorrupt)
}

func loaderDir(b int) string  { return "loader." + strconv.Itoa(b) }
func entriesDir(b int) string { return path.Join(loaderDir(b), "entries") }

// linksDir is ostree/boot.B.S.
func linksDir(b, sub int) string {
	return path.Join(ostreeDir, "boot."+strconv.Itoa(b)+"."+strconv.Itoa(sub))
}

// ownEntry matches the names that libostree gives to entries, without suffix and tries.
var ownEntry = regexp.MustCompile(`^ostree-[0-9]+(-.+)?$`)

func isOwnEntry(name bls.Name) bool { return ownEntry.MatchString(name.Stem) }

// A skippedEntry is a file that cannot be an entry of a deployment, or cannot be read as one.
type skippedEntry struct {
	file, reason string
	own          bool // its name is libostree's, so that it may belong to a deployment
}

// skip adds notes of entries that are left out.
func (st *State) skip(list ...skippedEntry) {
	for _, e := range list {
		st.Notes = append(st.Notes, fmt.Sprintf("boot loader entry %q is ignored: %s", e.file, e.reason))
		st.incomplete = st.incomplete || e.own
	}
}

// readEntries returns ostree's entries in boot/loader.B, in boot order, and those that it skipped.
func (s *Sysroot) readEntries(b int) (_ []BootEntry, skipped []skippedEntry, err error) {
	dir := entriesDir(b)
	names, err := readNames(s.boot, dir)
	if err != nil {
		return nil, nil, err
	}
	var entries []BootEntry
	for _, n := range names {
		name, ok := bls.ParseName(n)
		if !ok || !strings.HasPrefix(n, "ostree-") {
			continue
		}
		if len(entries) == maxEntries {
			return nil, nil, fmt.Errorf("more than %d boot loader entries: %w", maxEntries, ErrCorrupt)
		}
		text, err := s.readEntry(path.Join(dir, n))
		if isNoEntry(err) {
			skipped = append(skipped, skippedEntry{n, err.Error(), isOwnEntry(name)})
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		e, err := bls.Parse(text)
		switch {
		case err != nil && !isOwnEntry(name):
			skipped = append(skipped, skippedEntry{n, err.Error(), false})
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("boot loader entry %s: %w: %w", n, err, ErrCorrupt)
		}
		entries = append(entries, BootEntry{name, e, n})
	}
	slices.SortStableFunc(entries, func(a, b BootEntry) int {
		switch x, y := a.Entry.Version, b.Entry.Version; {
		case x == "" || y == "":
			return len(y) - len(x) // those without come last
		default:
			return bls.CompareVersions(y, x)
		}
	})
	return entries, skipped, nil
}

// readEntry returns the text of an entry. The error of a file that cannot be one isNoEntry.
func (s *Sysroot) readEntry(name string) ([]byte, error) {
	st, err := s.boot.Lstat(name)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = &fs.PathError{Op: "read", Path: name, Err: errNotRegular}
	}
	if err != nil {
		return nil, err
	}
	return s.boot.ReadFile(name, maxEntryLen)
}

var errNotRegular = errors.New("not a regular file")

func isNoEntry(err error) bool { return errors.Is(err, errNotRegular) || errors.Is(err, unix.EFBIG) }

// readDeployment returns the deployment that an entry leads to, or nil if the entry has no ostree=.
func (s *Sysroot) readDeployment(e BootEntry, st *State) (*Deployment, error) {
	args := kargs.Parse(e.Entry.Options)
	value, ok := args.Value("ostree")
	if !ok {
		return nil, nil
	}
	arg, err := bls.ParseOSTreeArg(value)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrCorrupt)
	}
	link := path.Join(linksDir(arg.BootVersion, st.SubBootVersion), arg.Stateroot, arg.BootCsum, strconv.Itoa(arg.BootSerial))
	if arg.BootVersion != st.BootVersion {
		return nil, fmt.Errorf("ostree=%s is not of boot version %d: %w", value, st.BootVersion, ErrCorrupt)
	}
	target, err := s.dir.Readlink(link)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrCorrupt)
	}
	d := &Deployment{
		Stateroot: arg.Stateroot, BootCsum: arg.BootCsum, BootSerial: arg.BootSerial,
		Kargs: args.Without("ostree"), Title: e.Entry.Title, Extra: e.Entry.Extra, Tries: e.Name.Tries, entry: e.Entry,
		overlays: overlaysOf(e.Entry), file: e.file,
	}
	if d.Commit, d.Serial, err = parseDeployName(path.Base(target)); err != nil || target != path.Join("../../..", "deploy", d.Stateroot, "deploy", d.Name()) {
		return nil, fmt.Errorf("%s leads to %.300q: %w", link, target, ErrCorrupt)
	}
	return d, s.readDetails(d)
}

// readDetails completes a deployment with what its entry does not have. A missing directory is an ErrCorrupt.
func (s *Sysroot) readDetails(d *Deployment) error {
	fi, err := s.dir.Lstat(d.Path())
	if err == nil && fi.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		return fmt.Errorf("deployment %s: %w: %w", d.Path(), err, ErrCorrupt)
	}
	if d.Origin, err = s.readOrigin(d); err != nil {
		return err
	}
	d.Version, err = s.commitVersion(d.Commit)
	return err
}

// commitVersion returns the version of a commit, or "" if it has none, or the repository no longer has it.
func (s *Sysroot) commitVersion(sum objectstore.Checksum) (string, error) {
	c, err := s.repo.Commit(sum)
	if errors.Is(err, objectstore.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	v, _ := c.MetaString("version")
	return v, nil
}

// parseDeployName parses the name of a deployment's directory: <commit>.<serial>.
func parseDeployName(name string) (sum objectstore.Checksum, serial int, err error) {
	hex, number, ok := strings.Cut(name, ".")
	if ok {
		if sum, err = objectstore.ParseChecksum(hex); err == nil {
			serial, err = strconv.Atoi(number)
		}
	}
	if !ok || err != nil || serial < 0 || strconv.Itoa(serial) != number {
		return sum, 0, fmt.Errorf("name of a deployment %.100q: %w", name, ErrCorrupt)
	}
	return sum, serial, nil
}

func originPath(d *Deployment) string { return d.Path() + ".origin" }

func (s *Sysroot) readOrigin(d *Deployment) (*keyfile.File, error) {
	text, err := s.dir.ReadFile(originPath(d), maxOriginLen)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := keyfile.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("origin file %s: %w: %w", originPath(d), err, ErrCorrupt)
	}
	return f, nil
}

// readTries reads the boot loader's boot counting.
func (s *Sysroot) readTries(ctx context.Context, st *State) error {
	if s.opts.Bootloader == nil {
		return nil
	}
	tries, err := s.opts.Bootloader.Tries(ctx)
	if err != nil {
		return fmt.Errorf("read boot counting: %w", err)
	}
	for _, d := range st.Deployments {
		if left, ok := tries[d.ostreeArg(st.BootVersion)]; ok {
			d.Tries = left
		}
	}
	return nil
}

func (s *Sysroot) isInode(name string, id *atfs.Inode) (bool, error) {
	st, err := s.dir.Lstat(name)
	if err != nil {
		return false, err
	}
	return atfs.InodeOf(&st) == *id, nil
}
