package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/encapsulate"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/ocilayout"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// systemRepo is the repository of the running system, which ostree takes too when none is named.
const systemRepo = "/sysroot/ostree/repo"

// encapsulateFlags are the flags of "image encapsulate".
type encapsulateFlags struct {
	repo        string
	version     int
	level       int
	arch        string
	labels      []string
	copyMeta    []string
	copyMetaOpt []string
}

// encapsulateReport is the output of "image encapsulate --json".
type encapsulateReport struct {
	Commit objectstore.Checksum `json:"commit"`
	Digest digest.Digest        `json:"digest"` // of the manifest
	Layers []encapsulateLayer   `json:"layers"`
}

type encapsulateLayer struct {
	Digest digest.Digest `json:"digest"`
	DiffID digest.Digest `json:"diff_id"`
	Size   int64         `json:"size"` // compressed
	Files  int           `json:"files"`
	Name   string        `json:"name"`
}

func (c *cli) imageEncapsulateCommand() *cobra.Command {
	var f encapsulateFlags
	cmd := &cobra.Command{
		Use:   "encapsulate COMMIT|REF DEST",
		Short: "Write an ostree commit as an image",
		Long: `Write an ostree commit as an ostree-native image: one that bootc, rpm-ostree and "deploy" take the commit out of again, bit by
bit and with its signatures, and that is a root file system for containers as well. The same commit gives the same digests on
every machine.

DEST is oci:DIR[:TAG], an OCI layout, which keeps its other images, or oci-archive:FILE[:TAG], a tar of one. It has the image
when that is complete, and not before.` + exitHelp(exitNoRepo, exitLocked, exitCorrupt, exitInterrupted),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return withHint(usagef("%q takes two arguments, COMMIT or REF and DEST", cmd.CommandPath()), "\"%s --help\" describes it", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: completeRef(&f.repo, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.imageEncapsulate(cmd.Context(), &f, args[0], args[1])
		},
	}
	c.jsonFlag(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.repo, "repo", systemRepo, "ostree `REPO` that has the commit, of mode bare")
	fl.IntVar(&f.version, "format-version", int(encapsulate.Version2), "`VERSION` of the format: 2, or 1, whose upper layers lack the directories above their files")
	fl.IntVar(&f.level, "compression-level", encapsulate.DefaultLevel, "`LEVEL` of gzip, from 1, the fastest, to 9")
	fl.StringVar(&f.arch, "arch", runtime.GOARCH, "architecture that the image is for, as images name it: amd64, arm64")
	fl.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` of a label; may be repeated")
	fl.StringArrayVar(&f.copyMeta, "copymeta", nil, "`KEY` of the commit's metadata that becomes a label; may be repeated")
	fl.StringArrayVar(&f.copyMetaOpt, "copymeta-opt", nil, "the same, but the commit may lack the `KEY`")
	completeValues(cmd, "format-version", "1", "2")
	return cmd
}

// options returns what the flags say about the image.
func (f *encapsulateFlags) options() (o encapsulate.Options, err error) {
	o = encapsulate.Options{
		Platform: ocispec.Platform{OS: "linux", Architecture: f.arch},
		Labels:   make(map[string]string), CopyMeta: f.copyMeta, CopyMetaOpt: f.copyMetaOpt,
	}
	if v := encapsulate.Version(f.version); v != encapsulate.Version1 && v != encapsulate.Version2 {
		return o, usagef("--format-version is %d, not 1 or 2", f.version)
	}
	if f.level < encapsulate.MinLevel || f.level > encapsulate.MaxLevel {
		return o, usagef("--compression-level is %d, not between %d and %d", f.level, encapsulate.MinLevel, encapsulate.MaxLevel)
	}
	for _, l := range f.labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return o, usagef("--label %q is not KEY=VALUE", l)
		}
		o.Labels[key] = value
	}
	return o, nil
}

func (c *cli) imageEncapsulate(ctx context.Context, f *encapsulateFlags, rev, to string) (err error) {
	o, err := f.options()
	if err != nil {
		return err
	}
	dest, err := ocilayout.ParseDest(to)
	if err != nil {
		return withStatus(exitUsage, err)
	}
	repo, err := openRepo(f.repo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	lock, err := repo.Lock(ctx, objectstore.LockShared) // no prune removes objects
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	sum, err := resolveCommit(repo, rev)
	if err != nil {
		return err
	}
	commit, err := encapsulate.Read(ctx, encapsulate.Repo(repo), sum)
	if err != nil {
		return err
	}
	layers, err := commit.Layers(nil, encapsulate.Version(f.version))
	if err != nil {
		return err
	}
	w, err := ocilayout.Create(ctx, dest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	bar := c.newProgress("writing files")
	manifest, blobs, err := commit.Write(ctx, w, layers, f.level, o, bar.update)
	bar.stop()
	if err != nil {
		return fmt.Errorf("encapsulate %s: %w", rev, err)
	}
	if err := w.Commit(manifest); err != nil {
		return err
	}
	return c.printEncapsulated(sum, manifest.Digest, blobs)
}

func (c *cli) printEncapsulated(commit objectstore.Checksum, manifest digest.Digest, blobs []encapsulate.Blob) error {
	r := encapsulateReport{Commit: commit, Digest: manifest}
	rows := []string{"commit\t" + commit.String(), "digest\t" + manifest.String()}
	for i, b := range blobs {
		r.Layers = append(r.Layers, encapsulateLayer{b.Digest, b.DiffID, b.Size, len(b.Files), b.Name})
		rows = append(rows, fmt.Sprintf("layer %d\t%s, %d bytes, %d files", i, b.Digest, b.Size, len(b.Files)))
	}
	if c.json {
		return c.writeJSON(r)
	}
	return c.table(rows...)
}

// openRepo opens an ostree repository.
func openRepo(name string) (_ *objectstore.Repo, err error) {
	dir, err := atfs.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return objectstore.Open(dir)
}

// resolveCommit returns the commit that a checksum or a ref names.
func resolveCommit(repo *objectstore.Repo, rev string) (objectstore.Checksum, error) {
	if sum, err := objectstore.ParseChecksum(rev); err == nil {
		return sum, nil
	}
	return repo.Ref(rev)
}

// completeRef offers a shell the refs of a repository, for the n'th argument.
func completeRef(repoName *string, n int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) (words []string, _ cobra.ShellCompDirective) {
		if len(args) != n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		repo, err := openRepo(*repoName)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer repo.Close()
		refs, _, err := repo.ReadableRefs("")
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		for name := range refs {
			words = append(words, name)
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}
