package deploy

import (
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// The files of an image with its kernel arguments, and their limits.
const (
	kargsExt = ".toml"
	maxKargs = 256 // both of arguments in all files and of files
)

// imageKargs returns the kernel arguments of a commit's image for this machine, in the order of its files' names. An
// image without such files has none.
func imageKargs(repo *objectstore.Repo, commit objectstore.Checksum) (kargs.List, error) {
	c, err := repo.Commit(commit)
	if err != nil {
		return nil, err
	}
	e, err := repo.Lookup(c.Root(), kargs.DropInDir)
	if errors.Is(err, objectstore.ErrNoEntry) || err == nil && !e.Dir {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	dir, err := repo.DirTree(e.Checksum)
	if err != nil {
		return nil, err
	}
	var args kargs.List
	files := 0
	for _, f := range dir.Files { // sorted by name
		if path.Ext(f.Name) != kargsExt {
			continue
		}
		if files++; files > maxKargs {
			return nil, fmt.Errorf("/%s: more than %d files", kargs.DropInDir, maxKargs)
		}
		add, err := kargsOf(repo, f.Checksum)
		if err != nil {
			return nil, fmt.Errorf("/%s/%s: %w", kargs.DropInDir, f.Name, err)
		}
		if args = append(args, add...); len(args) > maxKargs {
			return nil, fmt.Errorf("/%s: more than %d kernel arguments", kargs.DropInDir, maxKargs)
		}
	}
	return args, nil
}

// deployedKargs returns the kernel arguments of a deployment's image, none if the commit is gone: a system boots without
// it.
func (s *System) deployedKargs(d *sysroot.Deployment) (kargs.List, error) {
	args, err := imageKargs(s.Repo(), d.Commit)
	if err != nil && !errors.Is(err, objectstore.ErrNotExist) {
		return nil, fmt.Errorf("read kernel arguments of the image of %s: %w", Title(d), err)
	}
	return args, nil
}

func kargsOf(repo *objectstore.Repo, file objectstore.Checksum) ([]string, error) {
	f, err := repo.OpenFile(file)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, kargs.MaxDropIn+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > kargs.MaxDropIn {
		return nil, fmt.Errorf("more than %d bytes", kargs.MaxDropIn)
	}
	args, err := kargs.ParseDropIn(data, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	for _, arg := range args {
		if kargs.Sets(arg, "ostree") {
			return nil, fmt.Errorf("kernel argument %q cannot be set by an image", arg)
		}
	}
	return args, nil
}
