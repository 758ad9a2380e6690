package install

import (
	"context"
	"fmt"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bootloader"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// An OS is an operating system to install.
type OS struct {
	Stateroot string
	Origin    *keyfile.File // of the deployment, read once Store has returned; nil: none
	NoSELinux bool          // install a tree with an SELinux policy although its files have no labels

	// Store puts the OS commit into the repository of the new sysroot, under a ref. It returns the checksum and the
	// kernel arguments, with those of [Plan.Kargs] among them.
	Store func(ctx context.Context, repo *objectstore.Repo) (objectstore.Checksum, kargs.List, error)
}

// Kargs returns the kernel arguments that the OS needs to find its root file system.
func (p *Plan) Kargs() kargs.List { return kargs.List{"root=UUID=" + p.RootUUID, "rw"} }

// fill turns the root file system into a sysroot with one deployment, and lays out the ESP.
func (p *Plan) fill(ctx context.Context, root *atfs.Dir, o *OS) (err error) {
	if err := p.progress(ctx, "make the sysroot"); err != nil {
		return err
	}
	if err := sysroot.Init(root); err != nil {
		return err
	}
	if err := p.setBootloader(root); err != nil {
		return err
	}
	loader, err := makeESP(root)
	if err != nil {
		return err
	}
	defer func() { err = joined(err, loader.Close()) }()
	deployment, err := p.deploy(ctx, root, loader, o)
	if err != nil {
		return err
	}
	return p.copyLoader(root, deployment.Path())
}

func (p *Plan) deploy(ctx context.Context, root *atfs.Dir, b *bootloader.SystemdBoot, o *OS) (d *sysroot.Deployment, err error) {
	s, err := sysroot.Open(root, sysroot.Options{Bootloader: b})
	if err != nil {
		return nil, err
	}
	defer func() { err = joined(err, s.Close()) }()
	unlock, err := s.Lock(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = joined(err, unlock()) }()
	if err := s.InitStateroot(o.Stateroot); err != nil {
		return nil, err
	}
	if err := p.progress(ctx, "copy the OS"); err != nil {
		return nil, err
	}
	commit, args, err := o.Store(ctx, s.Repo())
	if err != nil {
		return nil, err
	}
	if err := p.progress(ctx, "deploy the OS"); err != nil {
		return nil, err
	}
	st, err := s.Load(ctx)
	if err != nil {
		return nil, err
	}
	plan, err := s.PlanDeploy(ctx, st, sysroot.Request{
		Stateroot: o.Stateroot, Commit: commit, Origin: o.Origin, Kargs: args, NoSELinux: o.NoSELinux,
	})
	if err != nil {
		return nil, err
	}
	return plan.New, s.Execute(ctx, plan)
}

// repoConfig is the configuration of a sysroot's repository.
const repoConfig = "ostree/repo/config"

// setBootloader tells libostree that no boot loader needs a configuration from it: it would search for one, and take
// the running system's for the sysroot's. It also records where the boot loader's entries are.
func (p *Plan) setBootloader(root *atfs.Dir) error {
	text, err := root.ReadFile(repoConfig, keyfile.MaxLen)
	if err != nil {
		return err
	}
	config, err := keyfile.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", repoConfig, err)
	}
	config.Set("sysroot", "bootloader", "none")
	if p.opts.ExceptDefault != "" {
		config.Set("sysroot", "bls-append-except-default", p.opts.ExceptDefault)
	}
	bootloader.SetESP(config, p.esp().UUID)
	return root.WriteFile(repoConfig, config.Marshal(), 0o644, true)
}
