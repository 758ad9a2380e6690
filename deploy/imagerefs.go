package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

const (
	imageRefs    = "ostree/container/image" // the directory of refs of images
	blobRefs     = sysroot.BlobRefs         // likewise of layers
	metaImporter = "ostree.importer.version"
)

// imageRef returns the ref that ostree's own tools give to the OS commit of an image in a registry. The name of the
// image must not be empty and must not contain NUL.
func imageRef(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%w: reference %q", oscommit.ErrInvalid, name)
	}
	return escapeRef(imageRefs, "docker://"+name), nil
}

// escapeRef returns the ref below a directory that ostree's own tools make of a text.
func escapeRef(dir, text string) string {
	var b strings.Builder
	b.WriteString(dir + "/")
	alnum := false // whether the character before was a letter or a digit
	for i, c := range text {
		was := alnum
		alnum = c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		switch {
		case alnum, c == '-', c == '/' && was && i+1 < len(text):
			b.WriteRune(c)
		case c == '_':
			b.WriteString("__")
		default:
			fmt.Fprintf(&b, "_%02X_", c)
		}
	}
	return b.String()
}

// unusedRefs returns the refs of images without a deployment, and of the commits inside images that neither a deployment
// nor another ref of an image needs. Refs of other tools, whose commits name an importer, stay.
func (s *System) unusedRefs(deployed ...*sysroot.Deployment) (names []string, err error) {
	if names, err = s.unusedImages(deployed...); err != nil {
		return nil, err
	}
	blobs, err := s.Repo().Refs(blobRefs)
	if err != nil || len(blobs) == 0 {
		return names, err
	}
	used, all, err := s.usedBlobs(names, deployed)
	if err != nil {
		return nil, err
	}
	if !all {
		return names, nil
	}
	for name, sum := range blobs {
		if used[name] {
			continue
		}
		c, err := s.commit(sum)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		// Other tools write commits of layers: with their name, or for a part of a commit, with nothing.
		part, err := s.isPart(c)
		if err != nil {
			return nil, err
		}
		if part {
			continue
		}
		if _, foreign := c.MetaString(metaImporter); !foreign {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// usedBlobs returns the refs of layers of all deployed images, and of all others whose commits have refs but for some. It
// returns false for all if one of these images has a manifest that cannot be read.
func (s *System) usedBlobs(but []string, deployed []*sysroot.Deployment) (used map[string]bool, all bool, err error) {
	refs, err := s.Repo().Refs("")
	if err != nil {
		return nil, false, err
	}
	commits := make(map[objectstore.Checksum]struct{})
	for _, d := range deployed {
		commits[d.Commit] = struct{}{}
	}
	for name, sum := range refs {
		if !slices.Contains(but, name) && !hasPrefix(name, blobRefs+"/", "ostree/0/", "ostree/1/") { // those of deployments
			commits[sum] = struct{}{}
		}
	}
	used = make(map[string]bool)
	for sum := range commits {
		c, err := s.commit(sum)
		if errors.Is(err, objectstore.ErrCorrupt) { // its manifest cannot be read either
			return nil, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		if c == nil {
			continue
		}
		manifest, ok := c.MetaString(oscommit.Manifest)
		if !ok {
			continue
		}
		blobs, err := layerBlobs([]byte(manifest))
		if err != nil {
			return nil, false, nil //nolint:nilerr // of another tool
		}
		for _, blob := range blobs {
			used[escapeRef(blobRefs, blob.String())] = true
		}
	}
	return used, true, nil
}

// isPart reports whether a commit may be one that other tools write for the objects in a layer: its root has nothing but
// these, by their checksums. One whose root is missing or damaged may be such a commit.
func (s *System) isPart(c *objectstore.Commit) (bool, error) {
	if len(c.Metadata) > 0 || c.Timestamp != 0 {
		return false, nil
	}
	root, err := s.Repo().DirTree(c.Tree)
	if errors.Is(err, objectstore.ErrNotExist) || errors.Is(err, objectstore.ErrCorrupt) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	named := func(f objectstore.TreeFile) bool { return f.Name != f.Checksum.String() }
	return len(root.Dirs) == 0 && !slices.ContainsFunc(root.Files, named), nil
}

func hasPrefix(s string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// commit returns a commit, or nil if it is absent.
func (s *System) commit(sum objectstore.Checksum) (*objectstore.Commit, error) {
	c, err := s.Repo().Commit(sum)
	if errors.Is(err, objectstore.ErrNotExist) {
		return nil, nil
	}
	return c, err
}

// unusedImages returns the refs of images without a deployment.
func (s *System) unusedImages(deployed ...*sysroot.Deployment) (names []string, err error) {
	refs, err := s.Repo().Refs(imageRefs)
	if err != nil {
		return nil, err
	}
	for name, sum := range refs {
		if slices.ContainsFunc(deployed, func(d *sysroot.Deployment) bool { return d.Commit == sum }) {
			continue
		}
		c, err := s.commit(sum)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		_, image := c.MetaString(oscommit.ManifestDigest)
		if _, foreign := c.MetaString(metaImporter); image && !foreign {
			names = append(names, name)
		}
	}
	return names, nil
}

// dropImages removes the refs of images without a deployment, so that their commits can be pruned. Deployments have
// refs of their own. The caller holds the sysroot's lock, as for every deployment of an image.
func (s *System) dropImages(ctx context.Context, deployed ...*sysroot.Deployment) error {
	names, err := s.unusedRefs(deployed...)
	if err != nil || len(names) == 0 {
		return err
	}
	return s.Repo().DeleteRefs(ctx, names...)
}
