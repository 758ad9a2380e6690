package objectstore

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

// verity selects the content objects that get fs-verity: libostree's key fsverity of the group ex-integrity.
type verity int

const (
	verityNo    verity = iota
	verityMaybe        // those for which kernel and file system support it
	verityYes          // all: an object that cannot get it is not stored
)

const (
	verityGroup = "ex-integrity"
	verityKey   = "fsverity"
)

// parseVerity reads libostree's tristate.
func parseVerity(f *keyfile.File) (verity, error) {
	v, _ := f.Get(verityGroup, verityKey)
	switch v = strings.TrimSpace(v); v {
	case "", "no", "false", "0":
		return verityNo, nil
	case "maybe":
		return verityMaybe, nil
	case "yes", "true", "1":
		return verityYes, nil
	}
	return verityNo, fmt.Errorf("%s is %.20q, not yes, no or maybe", verityKey, v)
}

// Verity reports whether the config says fsverity=yes: each regular file then gets fs-verity before it becomes a
// content object. Older objects, and linked ones, may lack it.
func (r *Repo) Verity() bool { return r.config.verity == verityYes }

// SetVerity switches fs-verity for new content objects that are regular files on or off, for this process and for all
// who open the repository later, including ostree(1). A crash leaves one setting or the other. Nothing may be stored
// meanwhile.
func (r *Repo) SetVerity(on bool) error {
	state, value := verityNo, "no"
	if on {
		state, value = verityYes, "yes"
	}
	if r.config.verity == state {
		return nil
	}
	if err := r.writeVerity(value); err != nil {
		return fmt.Errorf("write config of ostree repository: %w", err)
	}
	r.config.verity = state
	return nil
}

func (r *Repo) writeVerity(value string) error {
	text, err := r.dir.ReadFile(configName, maxConfigLen)
	if err != nil {
		return err
	}
	f, err := keyfile.Parse(text)
	if err != nil {
		return corruptf("parse config: %v", err)
	}
	f.Set(verityGroup, verityKey, value)
	return r.dir.WriteFile(configName, f.Marshal(), fileMode, true)
}

// GiveVerity enables fs-verity for a file that is about to become an object, or that belongs to the repository otherwise,
// if the config requires it. With "maybe", a file system without fs-verity is no error.
func (r *Repo) GiveVerity(f *atfs.File) error {
	if r.config.verity == verityNo {
		return nil
	}
	err := f.EnableVerity()
	if r.config.verity == verityMaybe && errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// HasVerity reports whether kernel and file system have fs-verity, whatever the config says. It changes nothing.
func (r *Repo) HasVerity() (bool, error) {
	f, err := r.dir.Open(configName)
	if err != nil {
		return false, err
	}
	has, err := f.HasVerity()
	return has, errors.Join(err, f.Close())
}

// EnableVerity makes sure that a content object that is a regular file has fs-verity, and returns its digest (SHA-256,
// blocks of 4 KiB). An object without fs-verity is hashed first, so that only the right content is made immutable;
// otherwise the error is an ErrCorrupt. A file system without fs-verity is errors.ErrUnsupported.
func (r *Repo) EnableVerity(sum Checksum) (digest Checksum, err error) {
	digest, err = r.enableVerity(sum)
	return digest, objectError(TypeFile, sum, err)
}

func (r *Repo) enableVerity(sum Checksum) (digest Checksum, err error) {
	f, err := r.OpenFile(sum)
	if err != nil {
		return digest, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	digest, ok, err := f.MeasureVerity()
	if err != nil || ok {
		return digest, err
	}
	if err := r.verifyFile(sum); err != nil {
		return digest, err
	}
	if err := f.EnableVerity(); err != nil {
		return digest, err
	}
	digest, ok, err = f.MeasureVerity()
	if err == nil && !ok {
		err = corruptf("fs-verity with another algorithm or block size than SHA-256 of 4096 bytes") // EEXIST
	}
	return digest, err
}

// MeasureVerity returns the fs-verity digest that the kernel reports for a content object that is a regular file; ok is
// false if it has none.
func (r *Repo) MeasureVerity(sum Checksum) (digest Checksum, ok bool, err error) {
	f, err := r.OpenFile(sum)
	if err != nil {
		return digest, false, err
	}
	digest, ok, err = f.MeasureVerity()
	return digest, ok, objectError(TypeFile, sum, errors.Join(err, f.Close()))
}
