package encapsulate

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Scatter distributes files over a number of chunks, with no regard to directories.
func Scatter(chunks int) Options {
	return Options{Chunks: chunks, Chunk: func(path string) int {
		h := fnv.New32a()
		_, _ = io.WriteString(h, path)
		return int(h.Sum32() % uint32(chunks))
	}}
}

// CommitTree commits a directory with ostree, to a new repository in an empty directory, and reads the commit. args are more
// arguments of ostree commit. The caller calls closeIt when done.
func CommitTree(ctx context.Context, repoDir, tree string, args ...string) (_ *Commit, closeIt func() error, err error) {
	commit := []string{
		"commit", "--branch=os", "--timestamp=2024-02-29T12:30:15Z", "--add-metadata-string=version=1", "--add-metadata=ostree.bootable=true",
	}
	out := ""
	for _, args := range [][]string{{"init", "--mode=bare"}, append(append(commit, args...), tree), {"rev-parse", "os"}} {
		cmd := exec.CommandContext(ctx, "ostree", append([]string{"--repo=" + repoDir}, args...)...)
		b, err := cmd.CombinedOutput()
		if out = strings.TrimSpace(string(b)); err != nil {
			return nil, nil, fmt.Errorf("ostree %s: %w: %s", args[0], err, out)
		}
	}
	dir, err := atfs.Open(repoDir)
	if err != nil {
		return nil, nil, err
	}
	opened, err := objectstore.Open(dir)
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, nil, err
	}
	sum, err := objectstore.ParseChecksum(out)
	if err != nil {
		return nil, nil, errors.Join(err, opened.Close())
	}
	c, err := Read(Repo(opened), sum)
	if err != nil {
		return nil, nil, errors.Join(err, opened.Close())
	}
	return c, opened.Close, nil
}

//go:embed *.go
var sources embed.FS

// OSChunks is the number of chunks of [OS].
const OSChunks = 64

// OS returns an image whose commit is that of images.OSBase, a Debian system, in 64 chunks of format version 1. It is made
// unless the cache has it.
func OS(ctx context.Context, log io.Writer) (*images.Image, error) {
	return system(ctx, log, "native-os", images.OSBase, Scatter(OSChunks), false)
}

// LabelledOS returns an image whose commit is that of images.SELinuxBase, with the labels of the policy in it, in 64 chunks of
// format version 2. It is made unless the cache has it.
func LabelledOS(ctx context.Context, log io.Writer) (*images.Image, error) {
	o := Scatter(OSChunks)
	o.Parents = true
	return system(ctx, log, "native-labelled-os", images.SELinuxBase, o, true)
}

// system returns an image whose commit has the files of one of package images.
func system(ctx context.Context, log io.Writer, kind, ref string, o Options, labels bool) (*images.Image, error) {
	layout, err := images.Layout(ctx, log, ref)
	if err != nil {
		return nil, err
	}
	base, err := images.Open(layout)
	if err != nil {
		return nil, err
	}
	inputs := []string{base.Descriptor.Digest.String()}
	for _, name := range []string{"commit.go", "image.go", "layers.go", "os.go", "tar.go"} {
		b, err := sources.ReadFile(name)
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, string(b))
	}
	dir, err := testhost.Cached(kind, testhost.Key(inputs...), func(dir string) error { return writeOS(ctx, base, dir, o, labels) })
	if err != nil {
		return nil, err
	}
	return images.Open(dir)
}

func writeOS(ctx context.Context, base *images.Image, dir string, o Options, labels bool) (err error) {
	tmp, err := os.MkdirTemp("", "encapsulate")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	tree, repo := filepath.Join(tmp, "tree"), filepath.Join(tmp, "repo")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	for _, layer := range base.Manifest.Layers {
		tar := exec.CommandContext(ctx, "tar", "-xpf", base.Blob(layer.Digest), "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", tree)
		if out, err := tar.CombinedOutput(); err != nil {
			return fmt.Errorf("unpack layer: %w: %s", err, out)
		}
	}
	if err := os.Rename(filepath.Join(tree, "etc"), filepath.Join(tree, "usr/etc")); err != nil {
		return err
	}
	var args []string
	if labels {
		args = []string{"--selinux-policy=" + tree}
	}
	c, closeIt, err := CommitTree(ctx, repo, tree, args...)
	if err != nil {
		return err
	}
	_, err = c.Image(dir, o)
	return errors.Join(err, closeIt())
}
