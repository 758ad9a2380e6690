package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// deployFlags are those of the commands that make a deployment of an image.
type deployFlags struct {
	systemFlags
	init      bool
	stage     bool
	retain    bool
	noPrune   bool
	noSELinux bool
	verbose   bool
	tries     int
	kargs     kargs.Edits
	notFailed bool // nothing is deployed if the image has failed to boot before
}

// addDeploy gives a command the flags that all have that deploy an image.
func (f *deployFlags) addDeploy(c *cli, cmd *cobra.Command) {
	f.addChange(cmd)
	f.addStateroot(cmd, "deploy into the stateroot `NAME` instead of the one that runs or boots")
	fl := cmd.Flags()
	fl.BoolVar(&f.stage, "stage", false, "finish when the system shuts down, with /etc as it is then")
	fl.BoolVar(&f.retain, "retain", false, "keep all deployments that there are")
	fl.IntVar(&f.tries, "boot-tries", 0, "fall back to what booted before if this does not boot well in `N` tries")
	fl.BoolVar(&f.noPrune, "no-prune", false, "leave objects in the repository that nothing needs any more")
	fl.BoolVar(&f.noSELinux, "no-selinux", false, "deploy an image with an SELinux policy, though files get no labels")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "name each file of the image that a deployment does not have")
	c.jsonFlag(cmd)
	c.daemonFlag(cmd)
	c.containerdFlags(cmd)
	c.imageNamespaceFlag(cmd)
}

// addKargs gives a command the flags that change kernel arguments.
func (f *deployFlags) addKargs(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.kargs.Set, "karg", nil, "have the kernel argument `KEY[=VALUE]` instead of all with this key; repeatable")
	fl.StringArrayVar(&f.kargs.Append, "karg-append", nil, "have the kernel argument `KEY[=VALUE]` beside others; repeatable")
	fl.StringArrayVar(&f.kargs.Replace, "karg-replace", nil, "replace the value: `KEY=VALUE`, or KEY=OLD=NEW; repeatable")
	fl.StringArrayVar(&f.kargs.Delete, "karg-delete", nil, "remove the kernel argument `KEY[=VALUE]`; repeatable")
}

// imageNamespaceFlag gives a command the flag for the namespace that its image is in.
func (c *cli) imageNamespaceFlag(cmd *cobra.Command) {
	namespace := os.Getenv("CONTAINERD_NAMESPACE")
	if namespace == "" {
		namespace = namespaces.Default
	}
	cmd.Flags().StringVarP(&c.imageNamespace, "namespace", "n", namespace,
		"`NAMESPACE` of containerd that has the image [$CONTAINERD_NAMESPACE]")
}

// deployStatuses are the exit statuses of commands that deploy an image.
var deployStatuses = []int{
	exitPartly, exitNoRepo, exitLocked, exitCorrupt, exitNoSysroot, exitNotBootable, exitConflict, exitNoImage, exitInterrupted,
}

func (c *cli) deployCommand() *cobra.Command {
	var f deployFlags
	cmd := &cobra.Command{
		Use:   "deploy IMAGE",
		Short: "Make an image that was pulled the system that boots next",
		Long: `Make a bootable deployment of an image that was pulled with this snapshotter, and have it boot next. What boots now is
kept to fall back to. Files of the image are hard links of those that the snapshotter has, if both are on one file
system. /etc is merged: what was changed there since the image was deployed stays as it is.

Kernel arguments are those of the deployment that boots now, changed as the image's /usr/lib/bootc/kargs.d has changed and
as --karg and its like say. IMAGE is what "ctr images ls" calls it; "ostree-snapshotter upgrade" asks for it again.` +
			exitHelp(deployStatuses...),
		Args:              oneArg("IMAGE"),
		ValidArgsFunction: c.completeImage,
		RunE:              func(cmd *cobra.Command, args []string) error { return c.deploy(cmd.Context(), &f, args[0]) },
	}
	f.addDeploy(c, cmd)
	f.addKargs(cmd)
	cmd.Flags().BoolVar(&f.init, "init", false, "make sysroot and stateroot if they are not there yet")
	return cmd
}

func (c *cli) deploy(ctx context.Context, f *deployFlags, image string) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	src, err := c.openImages()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	if f.init {
		missing, err := c.initSysroot(f)
		if err != nil {
			return err
		}
		if missing {
			return c.wouldInit(ctx, src, f, image)
		}
	}
	return c.lockSystem(ctx, &f.systemFlags, func(s *system, st *sysroot.State) error {
		if f.init {
			missing, err := f.initStateroot(s)
			if err != nil {
				return err
			}
			if missing {
				return c.wouldInit(ctx, src, f, image)
			}
		}
		return c.deployImage(ctx, src, s, st, f, image)
	})
}

// defaultStateroot is what a stateroot is called that nobody has given a name: what bootc calls it.
const defaultStateroot = "default"

// initSysroot makes a sysroot of a directory that is none. With --dry-run it reports whether it would.
func (c *cli) initSysroot(f *deployFlags) (missing bool, err error) {
	s, err := c.openSystem(&f.systemFlags)
	if err == nil {
		return false, s.close()
	}
	if statusOf(err) != exitNoSysroot || filepath.Clean(f.sysroot) == "/" {
		return false, err
	}
	dir, err := c.openDir(f.sysroot)
	if err != nil {
		return false, fmt.Errorf("make sysroot: %w", err)
	}
	defer dir.Close()
	if f.dryRun {
		return true, nil
	}
	if err := c.needWritable(&f.systemFlags); err != nil {
		return false, err
	}
	if err := sysroot.Init(dir); err != nil {
		return false, fmt.Errorf("make sysroot %s: %w", f.sysroot, err)
	}
	return false, nil
}

// initStateroot makes the stateroot that is to be deployed into, if it is not there. With --dry-run it reports whether it
// would.
func (f *deployFlags) initStateroot(s *system) (missing bool, err error) {
	names, err := s.Stateroots()
	switch {
	case err != nil:
		return false, err
	case f.stateroot == "" && len(names) > 0, slices.Contains(names, f.stateroot):
		return false, nil
	}
	f.stateroot = cmp.Or(f.stateroot, defaultStateroot)
	if f.dryRun {
		return true, nil
	}
	return false, s.InitStateroot(f.stateroot)
}

// wouldInit says what "deploy --init --dry-run" can say before there is a stateroot to plan with.
func (c *cli) wouldInit(ctx context.Context, src *imageSource, f *deployFlags, image string) error {
	img, err := c.resolveImage(ctx, src.conn, src.store, image)
	if err != nil {
		return err
	}
	return c.wouldDeploy(&sysroot.State{}, img.Manifest, fmt.Sprintf("%s gets the stateroot %s, and %s is the first deployment in it",
		f.sysroot, cmp.Or(f.stateroot, defaultStateroot), image))
}

// wouldDeploy is the end of a dry run that cannot say more than that it would deploy an image.
func (c *cli) wouldDeploy(st *sysroot.State, manifest digest.Digest, what string) error {
	r := unchanged(st, true)
	r.Changed = true
	r.Image = newImageReport(manifest, nil)
	r.Notes = append(r.Notes, what)
	if c.json {
		return c.writeJSON(r)
	}
	_, err := fmt.Fprintln(c.stdout, what)
	return err
}

// check finds what is wrong with flags before anything is done.
func (f *deployFlags) check() error {
	if f.tries < 0 || f.tries > maxTries {
		return usagef("--boot-tries %d: it can be up to %d", f.tries, maxTries)
	}
	if f.stage && f.tries > 0 {
		return usagef("--stage and --boot-tries: boots of a staged deployment cannot be counted")
	}
	return f.kargs.Check()
}

// maxTries is how often a deployment can be tried: libostree's bound.
const maxTries = 5

// imageSource is where images come from: the store that has their files, and containerd that knows their names.
type imageSource struct {
	store *store
	conn  *grpc.ClientConn
}

func (c *cli) openImages() (*imageSource, error) {
	s, err := c.openStore()
	if err != nil {
		return nil, err
	}
	conn, err := grpcClient(c.containerdSocket(s.cfg), dialUnix)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return &imageSource{store: s, conn: conn}, nil
}

func (s *imageSource) close() error { return errors.Join(s.conn.Close(), s.store.close()) }

// deployImage makes a deployment of an image that containerd has, or with --dry-run says what that would do.
func (c *cli) deployImage(ctx context.Context, src *imageSource, s *system, st *sysroot.State, f *deployFlags, image string) (err error) {
	img, err := c.resolveImage(ctx, src.conn, src.store, image)
	if err != nil {
		return err
	}
	stateroot, err := s.chooseStateroot(st, f.stateroot)
	if err != nil {
		return err
	}
	if f.tries > 0 {
		if err := s.canCount(); err != nil {
			return err
		}
	}
	if f.stage && st.Booted == nil {
		return withHint(usagef("--stage: only the running system can stage a deployment, and it was not booted from %s", s.path),
			"do without --stage")
	}
	if f.notFailed {
		has, err := s.hasFailed(st, img.Manifest)
		if err != nil {
			return err
		}
		if has {
			return c.noChange(st, &f.systemFlags, fmt.Sprintf("%s: %s", image, failedUpdate))
		}
	}
	os, err := c.promote(ctx, src.store, s.Repo(), img, f.dryRun)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.release()) }()
	if err := c.deployCommit(ctx, s, st, f, stateroot, img, os); err != nil {
		if !f.dryRun {
			err = errors.Join(err, s.forget(context.WithoutCancel(ctx)))
		}
		return err
	}
	return nil
}

// forget takes the name from an OS commit that has not become a deployment, so that it can be pruned.
func (s *system) forget(ctx context.Context) error {
	st, err := s.Load(ctx)
	if err != nil {
		return err
	}
	return s.dropImages(ctx, st.All()...)
}

// deployCommit makes a deployment of the OS commit of an image, or with --dry-run says what that would do.
func (c *cli) deployCommit(
	ctx context.Context, s *system, st *sysroot.State, f *deployFlags, stateroot string, img *resolved, os *promoted,
) error {
	req := sysroot.Request{
		Stateroot: stateroot,
		Commit:    os.commit,
		Merge:     st.MergeDeployment(stateroot),
		Retain:    f.retain,
		Stage:     f.stage,
		NoSELinux: f.noSELinux,
		NoPrune:   f.noPrune,
		Tries:     f.tries,
		From:      os.repo,
	}
	var err error
	from := newest(st, stateroot)
	if st.Booted == nil { // what has failed to boot is not what stays to fall back to
		req.Merge = from
	}
	req.Origin = newOrigin(from, img.Name)
	if req.Kargs, err = f.deployKargs(s, from, os); err != nil {
		return err
	}
	if next := bootsNext(st); next != nil && next == from && isSame(next, &req, img.Name) {
		return c.noChange(st, &f.systemFlags, fmt.Sprintf("%s is what boots next", title(next)))
	}
	p, err := s.PlanDeploy(ctx, st, req)
	if err != nil && (!f.dryRun || p == nil || p.Etc == nil) {
		return explain(err)
	}
	c.dropped(os.dropped, f.verbose)
	// A plan with conflicts can be looked at.
	return errors.Join(c.change(ctx, s, st, p, &f.systemFlags, newImageReport(img.Manifest, os.dropped), deployed(p)), explain(err))
}

// bootsNext is the deployment that the system boots next as things are.
func bootsNext(st *sysroot.State) *sysroot.Deployment {
	if st.Staged != nil {
		return st.Staged.Deployment
	}
	return st.Default()
}

// isSame reports whether a deployment is what a request asks for.
func isSame(d *sysroot.Deployment, r *sysroot.Request, image string) bool {
	name, _ := originName(d)
	return d.Commit == r.Commit && name == image && slices.Equal(d.Kargs, r.Kargs)
}

// deployKargs are the kernel arguments of a new deployment that takes over from another, which may be nil.
func (f *deployFlags) deployKargs(s *system, from *sysroot.Deployment, os *promoted) (kargs.List, error) {
	now, err := imageKargs(os.repo, os.commit)
	if err != nil {
		return nil, withStatus(exitNotBootable, fmt.Errorf("read kernel arguments of the image: %w", err))
	}
	var list kargs.List
	if from == nil {
		list = list.AppendIfMissing(now...)
	} else {
		before, err := imageKargs(s.Repo(), from.Commit)
		if err != nil && !errors.Is(err, objectstore.ErrNotExist) { // a system boots without its commit
			return nil, fmt.Errorf("read kernel arguments of the image of %s: %w", title(from), err)
		}
		list = from.Kargs.Update(before, now)
	}
	return f.kargs.Apply(list)
}

// dropped says what an image has and a deployment of it has not.
func (c *cli) dropped(list []oscommit.Dropped, verbose bool) {
	if verbose {
		for _, d := range list {
			c.note("%s %s: dropped", printable(d.Path), d.Reason)
		}
		return
	}
	if len(list) > 0 {
		c.note("dropped %d of the image's files and directories, which a deployment cannot have; -v names them", len(list))
	}
}

// completeImage offers a shell the names of containerd's images.
func (c *cli) completeImage(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	cfg, err := c.loadConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	conn, err := grpcClient(c.containerdSocket(cfg), dialUnix)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer conn.Close()
	list, err := imagesapi.NewImagesClient(conn).List(namespaces.WithNamespace(ctx, c.imageNamespace), &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, 0, len(list.Images))
	for _, img := range list.Images {
		names = append(names, img.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
