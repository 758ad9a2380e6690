package deploy

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/install"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// An InstallRequest asks for the installation of an image on a disk.
type InstallRequest struct {
	Image     *Image
	Stateroot string
	Kargs     kargs.Edits     // of those of the installation and the image
	NoSELinux bool            // install an image with an SELinux policy although files get no labels
	Options   install.Options // without Arch, Need, ESPNeed and OSLoader, which depend on the image
	Promote   PromoteOptions  // without DryRun
}

// An Installation is a plan to install an image. It has changed nothing on the disk.
type Installation struct {
	*install.Plan
	Dropped []oscommit.Dropped // files of the image that its deployment will not have
	Notes   []string           // about the image, as sentences

	request *InstallRequest
	layers  *layer.Store
}

// PlanInstall plans to install an image on a disk: a block device, or a file that is or becomes the image of one. It
// rehearses the deployment in a temporary directory of the store, so that an image that cannot be deployed is an error
// before the disk is written to.
//
// Besides the errors of [Promote] it returns those of package install, as *[InstallError], and ErrStaterootName,
// ErrImageKargs and kargs.ErrEdit.
func PlanInstall(ctx context.Context, layers *layer.Store, disk string, r InstallRequest) (*Installation, error) {
	i := &Installation{request: &r, layers: layers}
	found, err := i.look(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r.Image.Name, err)
	}
	i.Dropped = found.Dropped()
	if i.Plan, err = install.NewPlan(ctx, disk, i.options(found)); err != nil {
		return nil, &InstallError{err}
	}
	if err := i.rehearse(ctx); err != nil {
		return nil, err
	}
	return i, nil
}

// look returns the OS of the image.
func (i *Installation) look(ctx context.Context) (_ OS, err error) {
	lock, err := i.layers.Repo().Lock(ctx, objectstore.LockShared)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	return bootableOS(ctx, i.request.Promote.source(i.layers), i.request.Image)
}

// options completes the options of the installation for an OS.
func (i *Installation) options(found OS) install.Options {
	hasFile := func(name string) bool {
		_, ok := found.FileSize(name)
		return ok
	}
	const units = "usr/lib/systemd/system/"
	if hasFile(units+"ostree-finalize-staged.service") && !hasFile(units+"ostree-snapshotter-mirror.service") {
		i.Notes = append(i.Notes, "the image has ostree's unit that finalizes staged deployments, but not ours that updates systemd-boot: "+
			"mask ostree-finalize-staged.service")
	}
	modules := path.Join("usr/lib/modules", found.Kernel())
	kernel, _ := found.FileSize(path.Join(modules, "vmlinuz"))
	initramfs, _ := found.FileSize(path.Join(modules, "initramfs.img"))
	const block = 4096 // of every file system on offer
	o := i.request.Options
	o.Arch = runtime.GOARCH
	o.Need, o.ESPNeed = found.Allocated(block), kernel+initramfs
	o.OSLoader = install.HasLoader(runtime.GOARCH, hasFile)
	return o
}

// rehearse plans the deployment in a temporary sysroot in the store's tmp/.
func (i *Installation) rehearse(ctx context.Context) (err error) {
	dir, remove, err := i.layers.Scratch("sysroot")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if err := sysroot.Init(dir); err != nil {
		return err
	}
	s, err := sysroot.Open(dir, sysroot.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.InitStateroot(i.request.Stateroot); err != nil {
		if errors.Is(err, sysroot.ErrInvalid) {
			err = as(ErrStaterootName, err)
		}
		return err
	}
	commit, args, _, err := i.store(ctx, s.Repo())
	if err != nil {
		return err
	}
	st, err := s.Load(ctx)
	if err != nil {
		return err
	}
	_, err = s.PlanDeploy(ctx, st, sysroot.Request{
		Stateroot: i.request.Stateroot, Commit: commit, Kargs: args, NoSELinux: i.request.NoSELinux,
	})
	return err
}

// store makes the OS commit in the repository of a sysroot. It returns the commit, the kernel arguments of its
// deployment, and those that both the image and the installation ask for.
func (i *Installation) store(ctx context.Context, repo *objectstore.Repo) (sum objectstore.Checksum, args, shared kargs.List, err error) {
	o := i.request.Promote
	o.DryRun = false
	p, err := Promote(ctx, i.layers, repo, i.request.Image, o)
	if err != nil {
		return sum, nil, nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	own, err := imageKargs(repo, p.Commit)
	if err != nil {
		return sum, nil, nil, as(ErrImageKargs, fmt.Errorf("read kernel arguments of the image: %w", err))
	}
	args, shared, err = followImage(i.Kargs(), nil, own, nil, &i.request.Kargs)
	return p.Commit, args, shared, err
}

// Execute installs the image, as [install.Plan.Execute] does. Errors are an *[InstallError].
func (i *Installation) Execute(ctx context.Context) error {
	origin := NewOrigin(nil, i.request.Image.Name)
	err := i.Plan.Execute(ctx, &install.OS{
		Stateroot: i.request.Stateroot,
		Origin:    origin,
		NoSELinux: i.request.NoSELinux,
		Store: func(ctx context.Context, repo *objectstore.Repo) (objectstore.Checksum, kargs.List, error) {
			sum, args, shared, err := i.store(ctx, repo)
			setSharedKargs(origin, shared)
			return sum, args, err
		},
	})
	if err != nil {
		return &InstallError{err}
	}
	return nil
}
