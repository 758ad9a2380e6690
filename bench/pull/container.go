package pull

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/probe"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
)

// ProbeCommand are the arguments with which our program runs probe.Run. One more argument chooses the action.
var ProbeCommand = []string{"bench", "probe"}

// A container runs our program in the tree of an image.
type container struct {
	session *session
	box     containerd.Container
	task    containerd.Task
	exit    <-chan containerd.ExitStatus
	out     *output
}

// output is the output of a process. The streams are copied concurrently, so each has its own buffer.
type output struct{ stdout, stderr bytes.Buffer }

// start starts the probe in a new container of an image.
func (s *session) start(ctx context.Context, ref, do string) (_ *container, err error) {
	ctx = s.in(ctx)
	img, err := s.Client.GetImage(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	id := "bench-" + rand.Text()
	c := &container{session: s, out: new(output)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start container: %w", err), c.remove(ctx))
		}
	}()
	c.box, err = s.Client.NewContainer(ctx, id,
		containerd.WithImage(img),
		containerd.WithSnapshotter(s.Snapshotter),
		containerd.WithNewSnapshot(id, img),
		containerd.WithRuntime("io.containerd.runc.v2", &runcoptions.Options{Root: s.RuncRoot}),
		containerd.WithNewSpec(s.spec(id, do)),
	)
	if err != nil {
		return nil, err
	}
	c.task, err = c.box.NewTask(ctx, s.io(c.out))
	if err != nil {
		return nil, err
	}
	if c.exit, err = c.task.Wait(ctx); err != nil {
		return nil, err
	}
	return c, c.task.Start(ctx)
}

func (s *session) io(out *output) cio.Creator {
	return cio.NewCreator(cio.WithStreams(nil, &out.stdout, &out.stderr), cio.WithFIFODir(s.FIFODir))
}

// spec returns the spec of a container: our program over the tree of the image, with nothing else mounted except what
// runc needs.
func (s *session) spec(id, do string) oci.SpecOpts {
	return oci.Compose(
		oci.WithProcessArgs(probeArgs(do)...),
		oci.WithProcessCwd("/"),
		oci.WithRootFSPath("rootfs"),
		oci.WithCgroup(s.Cgroup+"/"+id),
		func(_ context.Context, _ oci.Client, _ *containers.Container, spec *oci.Spec) error {
			spec.Mounts = []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
				{Destination: probe.Program, Type: "bind", Source: s.self, Options: []string{"bind", "ro"}},
			}
			return nil
		},
	)
}

func probeArgs(do string) []string {
	return append(append([]string{probe.Program}, ProbeCommand...), do)
}

// wait waits until the container ends by itself, and returns its output.
func (c *container) wait(ctx context.Context) (string, error) {
	select {
	case st := <-c.exit:
		return result(st, c.task.IO(), c.out)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// result returns the output of a process that succeeded.
func result(st containerd.ExitStatus, streams cio.IO, out *output) (string, error) {
	code, _, err := st.Result()
	if err != nil {
		return "", err
	}
	streams.Wait()
	if code != 0 {
		return "", fmt.Errorf("probe container: exit status %d: %s", code, strings.Join(strings.Fields(out.stderr.String()), " "))
	}
	return out.stdout.String(), nil
}

// exec runs the probe again in a running container, and returns its output.
func (c *container) exec(ctx context.Context, do string) (_ string, err error) {
	ctx = c.session.in(ctx)
	spec, err := c.box.Spec(ctx)
	if err != nil {
		return "", err
	}
	p := spec.Process
	p.Args = probeArgs(do)
	var out output
	process, err := c.task.Exec(ctx, "exec-"+rand.Text(), p, c.session.io(&out))
	if err != nil {
		return "", err
	}
	defer func() {
		_, derr := process.Delete(context.WithoutCancel(ctx), containerd.WithProcessKill)
		err = errors.Join(err, derr)
	}()
	exit, err := process.Wait(ctx)
	if err != nil {
		return "", err
	}
	if err := process.Start(ctx); err != nil {
		return "", err
	}
	select {
	case st := <-exit:
		return result(st, process.IO(), &out)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// remove ends a container and removes it and its snapshot. The container may be incomplete.
func (c *container) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	if c.task != nil {
		_, err := c.task.Delete(ctx, containerd.WithProcessKill)
		errs = append(errs, err)
	}
	if c.box != nil {
		errs = append(errs, c.box.Delete(ctx, containerd.WithSnapshotCleanup))
	}
	for i, err := range errs {
		if errdefs.IsNotFound(err) || errors.Is(err, syscall.ESRCH) {
			errs[i] = nil
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}

// run runs the probe in a new container. It returns the output, and the time from creating the container to its end.
func (s *session) run(ctx context.Context, ref, do string) (out string, d time.Duration, err error) {
	start := time.Now()
	c, err := s.start(ctx, ref, do)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, c.remove(s.in(ctx))) }()
	out, err = c.wait(ctx)
	return out, time.Since(start), err
}

// firstStart measures the start of a container whose program does nothing.
func (s *session) firstStart(ctx context.Context, ref string, v values) error {
	_, d, err := s.run(ctx, ref, "nothing")
	if err != nil {
		return err
	}
	v.seconds(report.Start, d)
	return nil
}

// verify compares the files in a container with those of the image.
func (s *session) verify(ctx context.Context, ref string, want tree) error {
	out, _, err := s.run(ctx, ref, "list")
	if err != nil {
		return err
	}
	return want.compare(strings.NewReader(out))
}

// pageCache reads all files of the images in simultaneous containers. It returns the number of bytes of page cache that
// hold them, which is what was not cached when its turn came.
func (s *session) pageCache(ctx context.Context, refs []string) (bytes int64, err error) {
	var boxes []*container
	defer func() {
		for _, c := range boxes {
			err = errors.Join(err, c.remove(s.in(ctx)))
		}
	}()
	for _, ref := range refs {
		c, err := s.start(ctx, ref, "wait")
		if err != nil {
			return 0, err
		}
		boxes = append(boxes, c)
	}
	for _, c := range boxes {
		if _, err := c.exec(ctx, "evict"); err != nil {
			return 0, err
		}
	}
	for _, c := range boxes {
		out, err := c.exec(ctx, "read")
		if err != nil {
			return 0, err
		}
		var all, cached int64
		if _, err := fmt.Sscan(out, &all, &cached); err != nil {
			return 0, fmt.Errorf("probe container: it printed %q", out)
		}
		bytes += all - cached
	}
	return bytes, nil
}
