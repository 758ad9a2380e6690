package deploy

import (
	"cmp"
	"fmt"
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Keys in the group sysroot.OriginGroup of an origin file, for deployments that are not made from images.
const (
	originRefspec  = "refspec"
	originBase     = "baserefspec"
	originOverride = "override-commit"
)

// The group of an origin file that is this program's own, and its keys: the kernel arguments that both the image and the
// machine ask for, which stay when the image no longer does, and the epoch of SELinux labels. See originVerdict.
const (
	originGroup  = "ostree-snapshotter"
	originShared = "shared-kargs"
	originEpoch  = "selinux-labeling-epoch"
)

// setOwn sets a key of this program's own group; "" removes it.
func setOwn(f *keyfile.File, key, value string) {
	if value != "" {
		f.Set(originGroup, key, value)
		return
	}
	f.Remove(originGroup, key)
	for _, key := range []string{originShared, originEpoch, originVerdict} {
		if _, ok := f.Get(originGroup, key); ok {
			return
		}
	}
	f.RemoveGroup(originGroup)
}

// labelEpoch returns the epoch that an origin file records. The file may be nil.
func labelEpoch(f *keyfile.File) (oscommit.Epoch, error) {
	if f == nil {
		return 0, nil
	}
	text, ok := f.Get(originGroup, originEpoch)
	if !ok {
		return 0, nil
	}
	e, ok := oscommit.ParseEpoch(text)
	if !ok {
		return 0, fmt.Errorf("origin: %s=%.80q is no epoch of SELinux labels", originEpoch, text)
	}
	return e, nil
}

// setLabelEpoch records an epoch. That of the first needs no record.
func setLabelEpoch(f *keyfile.File, e oscommit.Epoch) {
	text := ""
	if e != 0 {
		text = e.String()
	}
	setOwn(f, originEpoch, text)
}

// sharedKargs returns the kernel arguments of a deployment that an origin file records as both the image's and the
// machine's. The file may be nil.
func sharedKargs(f *keyfile.File) kargs.List {
	if f == nil {
		return nil
	}
	text, _ := f.Get(originGroup, originShared)
	return kargs.Parse(text)
}

func setSharedKargs(f *keyfile.File, args kargs.List) {
	setOwn(f, originShared, args.String())
}

// OriginName returns the name of the image that a deployment was made from, or else an ostree refspec. Both are "" if
// its origin has neither.
func OriginName(d *sysroot.Deployment) (image, refspec string) {
	if reference, ok := d.ImageReference(); ok {
		if r, err := ParseReference(reference); err == nil {
			return r.Name, ""
		}
		return reference, ""
	}
	if d.Origin != nil {
		ref, _ := d.Origin.Get(sysroot.OriginGroup, originRefspec)
		base, _ := d.Origin.Get(sysroot.OriginGroup, originBase)
		return "", cmp.Or(ref, base)
	}
	return "", ""
}

// NewOrigin returns the origin of a deployment of an image that takes over from another, which may be nil. All other
// parts of the old origin are kept.
func NewOrigin(from *sysroot.Deployment, ref Reference) *keyfile.File {
	f := &keyfile.File{}
	if from != nil && from.Origin != nil {
		f = from.Origin.Clone()
	}
	for _, key := range []string{originRefspec, originBase, originOverride} {
		f.Remove(sysroot.OriginGroup, key)
	}
	f.Set(sysroot.OriginGroup, sysroot.OriginImage, ref.String())
	return f
}

// Title returns a name of a deployment for people, fit for a terminal.
func Title(d *sysroot.Deployment) string {
	name, _ := OriginName(d)
	return Printable(strings.TrimSpace(fmt.Sprintf("%s %.12s.%d %s", d.Stateroot, d.Commit, d.Serial, cmp.Or(name, d.Version))))
}

// Printable returns a text fit for one line of a terminal: names in images, commits, origin files and boot entries may
// contain control characters, line separators and controls of the direction of text, which would forge other output.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, s)
}

// manifestDigest returns the digest of the manifest of a commit's image, or "" for a commit of something else.
func manifestDigest(repo *objectstore.Repo, commit objectstore.Checksum) (digest.Digest, error) {
	c, err := repo.Commit(commit)
	if err != nil {
		return "", err
	}
	d, _ := c.MetaString(oscommit.ManifestDigest)
	return digest.Digest(d), nil
}
