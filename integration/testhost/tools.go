package testhost

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// Tools are the absolute paths of the programs that the tests run.
type Tools struct {
	Containerd string // the directory also contains containerd-shim-runc-v2
	Release    string // of containerd, if it is not the one of integration/tools/containerd
	Ctr        string
	Nerdctl    string
	Crictl     string
	Registry   string
	Runc       string
}

const containerdTags = "netgo,osusergo,static_build,no_btrfs,no_devmapper,no_zfs"

// OldContainerd is the containerd release of the oldest supported series, on which the tests run beside the newest.
const OldContainerd = "1.7.35"

// A toolModule is a Go module below integration/tools with the packages to build in it. It pins the version of a
// program, or of a library of a program there.
type toolModule struct {
	name     string
	packages []string
	tags     string
}

var toolModules = []toolModule{
	{
		name: "containerd",
		packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
		},
		tags: containerdTags,
	},
	{
		name:     "nerdctl",
		packages: []string{"github.com/containerd/nerdctl/v2/cmd/nerdctl"},
		tags:     "netgo,osusergo",
	},
	{
		name:     "crictl",
		packages: []string{"sigs.k8s.io/cri-tools/cmd/crictl"},
		tags:     "netgo,osusergo",
	},
}

// goerofs is a program of ours that wraps a library.
var goerofs = toolModule{name: "goerofs", packages: []string{"."}}

// Goerofs returns the path of the program that lists EROFS images with the erofs project's Go reader. It builds the
// program unless the cache has it.
func Goerofs(ctx context.Context, log io.Writer) (string, error) {
	dir, err := goerofs.build(ctx, log)
	return filepath.Join(dir, "goerofs"), err
}

// RepoDir returns the root of this repository: the nearest directory above the working directory with our go.mod.
func RepoDir() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		switch {
		case err == nil && strings.HasPrefix(string(b), "module github.com/ostree-snapshotter/ostree-snapshotter\n"):
			return dir, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("find the repository: %w", err)
		case dir == filepath.Dir(dir):
			return "", fmt.Errorf("find the repository: no go.mod of ours above %s", wd)
		}
	}
}

// BuildTools returns the programs that the tests run, and builds those that the cache does not have.
func BuildTools(ctx context.Context, log io.Writer) (*Tools, error) {
	dirs := make(map[string]string)
	for _, m := range toolModules {
		dir, err := m.build(ctx, log)
		if err != nil {
			return nil, err
		}
		dirs[m.name] = dir
	}
	tools := &Tools{
		Containerd: filepath.Join(dirs["containerd"], "containerd"),
		Ctr:        filepath.Join(dirs["containerd"], "ctr"),
		Nerdctl:    filepath.Join(dirs["nerdctl"], "nerdctl"),
		Crictl:     filepath.Join(dirs["crictl"], "crictl"),
	}
	var err error
	if tools.Registry, err = Registry(ctx, log); err != nil {
		return nil, err
	}
	var ok bool
	if tools.Runc, ok = testenv.LookTool("runc"); !ok {
		return nil, errors.New("find runc: not installed")
	}
	return tools, nil
}

// build builds the module's packages into the cache.
func (m toolModule) build(ctx context.Context, log io.Writer) (string, error) {
	repo, err := RepoDir()
	if err != nil {
		return "", err
	}
	src := filepath.Join(repo, "integration/tools", m.name)
	inputs := []string{runtime.Version(), runtime.GOARCH, m.tags, strings.Join(m.packages, " ")}
	err = filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		inputs = append(inputs, strings.TrimPrefix(path, src), string(b))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read module %s: %w", m.name, err)
	}
	return Cached("bin-"+m.name, Key(inputs...), func(dir string) error {
		return goBuild(ctx, log, src, dir, m.tags, m.packages)
	})
}

// goBuild builds packages of the module in src.
func goBuild(ctx context.Context, log io.Writer, src, dir, tags string, packages []string) error {
	args := append([]string{"build", "-trimpath", "-tags", tags, "-ldflags", "-s -w", "-o", dir}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly -buildvcs=false")
	return run(cmd, log)
}

// WithContainerd returns the same tools with a release of containerd, such as "1.7.35", and its ctr. It builds the
// release unless the cache has it.
func (t Tools) WithContainerd(ctx context.Context, log io.Writer, release string) (*Tools, error) {
	module := "github.com/containerd/containerd"
	if major, _, _ := strings.Cut(release, "."); major != "1" {
		module += "/v" + major
	}
	dir, err := buildRelease(ctx, log, "containerd", module, release, containerdTags,
		"./cmd/containerd", "./cmd/containerd-shim-runc-v2", "./cmd/ctr")
	t.Release, t.Containerd, t.Ctr = release, filepath.Join(dir, "containerd"), filepath.Join(dir, "ctr")
	return &t, err
}

// BuildkitRelease is the release of BuildKit that the tests run.
const BuildkitRelease = "0.34.2"

// Buildkit returns the directory with buildkitd and buildctl. It builds them unless the cache has them.
func Buildkit(ctx context.Context, log io.Writer) (string, error) {
	return buildRelease(ctx, log, "buildkit", "github.com/moby/buildkit", BuildkitRelease, "netgo,osusergo",
		"./cmd/buildkitd", "./cmd/buildctl")
}

// buildRelease builds packages of a release into the cache, from its Go module and with the dependencies that it was
// released with.
func buildRelease(
	ctx context.Context, log io.Writer, name, module, release, tags string, packages ...string,
) (string, error) {
	key := Key(runtime.Version(), runtime.GOARCH, tags, module, release, strings.Join(packages, " "))
	return Cached("bin-"+name, key, func(dir string) error {
		get := exec.CommandContext(ctx, "go", "mod", "download", "-json", module+"@v"+release)
		get.Dir = dir // outside our module, so go.sum is not ours: the checksum database has the module's hash
		out, err := get.Output()
		var got struct{ Dir, Error string }
		if jerr := json.Unmarshal(out, &got); jerr != nil || got.Dir == "" {
			return fmt.Errorf("download %s@v%s: %s: %w", module, release, got.Error, cmp.Or(err, jerr))
		}
		return goBuild(ctx, log, got.Dir, dir, tags, packages)
	})
}

// BinaryEnv names the environment variable with the binary to test.
const BinaryEnv = "OSTREE_SNAPSHOTTER_BINARY"

// BuildBinary builds the program of this tree in a directory, unless the environment names a binary, and returns its
// path.
func BuildBinary(ctx context.Context, dir string) (string, error) {
	if name := os.Getenv(BinaryEnv); name != "" {
		return filepath.Abs(name)
	}
	return BuildProgram(ctx, dir, "./cmd/ostree-snapshotter")
}

// BuildProgram builds a static program of this module into dir and returns its path.
func BuildProgram(ctx context.Context, dir, pkg string) (string, error) {
	repo, err := RepoDir()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, pkg)
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return binary, nil
}
