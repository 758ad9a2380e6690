package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/install"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/prepareroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

const (
	maxConfigFiles = 32 // that configure an image's installation
	maxIgnored     = 8  // keys of each that notes name
)

// An InstallRequest asks for the installation of an image on a disk.
type InstallRequest struct {
	Image     *Image
	Reference *Reference      // to the image, for the origin; nil: its name, without a demand
	Verifier  Verifier        // nil: no signature policy
	Stateroot string          // "": what the image asks for, else DefaultStateroot
	Kargs     kargs.Edits     // of those of the installation and the image
	NoSELinux bool            // give files no labels, although the image has an SELinux policy
	Options   install.Options // without Arch, Need, ESPNeed, OSLoader and ExceptDefault, which depend on the image
	Promote   PromoteOptions  // without DryRun and NoLabels
}

// An Installation is a plan to install an image. It has changed nothing on the disk.
type Installation struct {
	*install.Plan
	Stateroot string
	Dropped   []oscommit.Dropped // files of the image that its deployment will not have
	Notes     []string           // about the image, as sentences

	request *InstallRequest
	layers  *layer.Store
	config  *install.Config // of the image
	copies  bool            // the deployment has copies of what is outside of /usr
	asIs    bool            // the deployment has the tree of a commit inside the image, with or without labels

	reference Reference
	verdict   *Verdict
}

// PlanInstall plans to install an image on a disk: a block device, or a file that is or becomes the image of one. It
// rehearses the deployment in a temporary directory of the store, so that an image that cannot be deployed is an error
// before the disk is written to. Signatures are checked first: an image without those that the policy and its reference
// demand is an ErrRefused, or the verifier's error; an ErrRemote if keys cannot be used. Keys are the running system's.
//
// The image chooses the file system of the root partition, the stateroot and further kernel arguments (see
// [install.Config]) where the request does not.
//
// Besides the errors of [Promote] it returns those of package install, as *[InstallError], and ErrStaterootName,
// ErrInstallConfig, ErrImageKargs and kargs.ErrEdit.
func PlanInstall(ctx context.Context, layers *layer.Store, disk string, r InstallRequest) (*Installation, error) {
	r.Promote.NoLabels = r.NoSELinux
	i := &Installation{request: &r, layers: layers, reference: Reference{Name: r.Image.Name}}
	if err := i.verify(ctx); err != nil {
		return nil, err
	}
	found, err := i.look(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r.Image.Name, err)
	}
	i.Dropped = found.Dropped()
	i.Stateroot = cmp.Or(r.Stateroot, i.config.Stateroot, DefaultStateroot)
	if i.Plan, err = install.NewPlan(ctx, disk, i.options(found)); err != nil {
		return nil, &InstallError{err}
	}
	if err := i.rehearse(ctx); err != nil {
		return nil, err
	}
	return i, nil
}

// verify checks what can be checked before the layers are read.
func (i *Installation) verify(ctx context.Context) (err error) {
	r := i.request
	if r.Reference != nil {
		i.reference = *r.Reference
	}
	if i.verdict, err = verify(ctx, r.Verifier, i.reference, r.Image); err != nil {
		return err
	}
	if i.reference.Demand != DemandCommit {
		return nil
	}
	repo := ""
	if running, err := IsRunning("/"); err != nil {
		return err
	} else if running {
		repo = repoOf(runningSysroot)
	}
	r.Promote.covered = i.verdict != nil && len(i.verdict.Signers) > 0
	r.Promote.remote, err = commitKeys(repo, i.reference.Remote)
	return err
}

// look returns the OS of the image, and reads its configuration.
func (i *Installation) look(ctx context.Context) (_ OS, err error) {
	lock, err := i.layers.Repo().Lock(ctx, objectstore.LockShared)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	found, err := bootableOS(ctx, i.request.Promote.source(i.layers), i.request.Image)
	if err != nil {
		return nil, err
	}
	if n, ok := found.(*nativeOS); ok {
		i.asIs = !n.derived
	}
	if p := &i.request.Promote; p.remote != nil {
		signed, err := verifyCommit(found, p.remote, p.covered)
		if err != nil {
			return nil, err
		}
		i.verdict = i.verdict.add(signed)
	}
	boot, err := prepareroot.Load(func(name string) ([]byte, error) { return found.ReadFile(i.layers.Repo(), name, install.MaxConfig) })
	i.copies = err != nil || boot.Composefs != prepareroot.Yes // the rehearsal returns the error
	return found, i.readConfig(found)
}

// readConfig reads the configuration of the image's installation.
func (i *Installation) readConfig(found OS) error {
	i.config = new(install.Config)
	files := install.ConfigFiles(found.ReadDir)
	if len(files) > maxConfigFiles {
		return as(ErrInstallConfig, fmt.Errorf("more than %d files that configure the installation", maxConfigFiles))
	}
	for _, name := range files {
		data, err := found.ReadFile(i.layers.Repo(), name, install.MaxConfig)
		if errors.Is(err, fs.ErrNotExist) { // a link that leads nowhere
			continue
		}
		i.config.Ignored = nil
		if err == nil {
			err = i.config.Merge(data, runtime.GOARCH)
		}
		if err != nil {
			return as(ErrInstallConfig, fmt.Errorf("read /%s: %w", Printable(name), err))
		}
		keys := i.config.Ignored
		for _, key := range keys[:min(len(keys), maxIgnored)] {
			i.Notes = append(i.Notes, fmt.Sprintf("/%s: %s has no effect", Printable(name), Printable(key)))
		}
		if more := len(keys) - maxIgnored; more > 0 {
			i.Notes = append(i.Notes, fmt.Sprintf("/%s: %d more keys have no effect", Printable(name), more))
		}
	}
	if fs := i.config.Filesystem; fs != "" && i.request.Options.Filesystem == "" && !slices.Contains(install.Filesystems, fs) {
		return as(ErrInstallConfig, fmt.Errorf("root file system %.80q: want one of %s", fs, strings.Join(install.Filesystems, ", ")))
	}
	return i.checkBlocks()
}

// checkBlocks refuses an image that wants nothing but encrypted disks.
func (i *Installation) checkBlocks() error {
	const direct = "direct"
	switch b := i.config.Blocks; {
	case b == nil || slices.Index(b, direct) == 0:
		return nil
	case !slices.Contains(b, direct):
		return as(ErrInstallConfig, fmt.Errorf("it allows only disks of the kind %.80q, and install makes %s ones without encryption", b, direct))
	default:
		i.Notes = append(i.Notes, fmt.Sprintf("the image prefers a disk of the kind %.80q; this one is not encrypted", b[0]))
	}
	return nil
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
	o.Need, o.ESPNeed = found.Allocated(block, i.copies), kernel+initramfs
	o.OSLoader = install.HasLoader(runtime.GOARCH, hasFile)
	o.Filesystem = cmp.Or(o.Filesystem, i.config.Filesystem)
	o.ExceptDefault = i.config.ExceptDefault
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
	s.Repo().Rehearse()
	if err := s.InitStateroot(i.Stateroot); err != nil {
		if errors.Is(err, sysroot.ErrInvalid) {
			kind := ErrStaterootName
			if i.request.Stateroot == "" {
				kind = ErrInstallConfig
			}
			err = as(kind, err)
		}
		return err
	}
	o := i.request.Promote
	o.NoLabels = true // look has read the policy; labels would take copies of all files
	commit, args, _, err := i.store(ctx, s.Repo(), o)
	if err != nil {
		return err
	}
	st, err := s.Load(ctx)
	if err != nil {
		return err
	}
	p, err := s.PlanDeploy(ctx, st, sysroot.Request{
		Stateroot: i.Stateroot, Commit: commit, Kargs: args, NoSELinux: i.request.NoSELinux || !i.asIs, Rehearsal: true,
	})
	if err != nil {
		return err
	}
	if p.NeedsVerity() && !i.HasVerity() {
		return fmt.Errorf("%w: the image demands fs-verity, which its root file system will not have", sysroot.ErrUnsupported)
	}
	return nil
}

// store makes the OS commit in the repository of a sysroot. It returns the commit, the kernel arguments of its
// deployment, and those that both the image and the installation ask for.
func (i *Installation) store(
	ctx context.Context, repo *objectstore.Repo, o PromoteOptions,
) (sum objectstore.Checksum, args, shared kargs.List, err error) {
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
	args, shared, err = followImage(slices.Concat(i.Kargs(), i.config.Kargs), nil, own, nil, &i.request.Kargs)
	return p.Commit, args, shared, err
}

// Execute installs the image, as [install.Plan.Execute] does. Errors are an *[InstallError].
func (i *Installation) Execute(ctx context.Context) error {
	origin := NewOrigin(nil, i.reference)
	setVerdict(origin, i.verdict)
	err := i.Plan.Execute(ctx, &install.OS{
		Stateroot: i.Stateroot,
		Origin:    origin,
		NoSELinux: i.request.NoSELinux,
		Store: func(ctx context.Context, repo *objectstore.Repo) (objectstore.Checksum, kargs.List, error) {
			sum, args, shared, err := i.store(ctx, repo, i.request.Promote)
			setSharedKargs(origin, shared)
			setLabelEpoch(origin, i.request.Promote.Epoch)
			return sum, args, err
		},
	})
	if err != nil {
		return &InstallError{err}
	}
	return nil
}
