package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"text/template"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// The names that containerd's plugins for our snapshotter and differ have. They are keys of one table, so they must
// differ.
const (
	snapshotterID = "ostree"
	differID      = "ostree-diff"
)

// containerdConfig is what the template for containerd's configuration needs to know.
type containerdConfig struct {
	Version  int // of the configuration's format
	Address  string
	Root     string
	Platform string // that unpack_config matches
}

// newContainerdConfig describes the configuration of a format version, 2 to 4. Before containerd 2.3, which is what
// has version 4, a platform is matched whole.
func newContainerdConfig(version int, address, root string) containerdConfig {
	c := containerdConfig{Version: version, Address: address, Root: root, Platform: "linux"}
	if version < 4 {
		c.Platform = platforms.Format(platforms.DefaultSpec())
	}
	return c
}

// Every key is one that containerd documents. A list in a drop-in replaces the list of the main file, so that the
// entries for the built-in snapshotter have to be repeated.
var containerdTemplate = template.Must(template.New("containerd").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(
	`# Configuration for containerd {{if eq .Version 2}}1.7{{else if eq .Version 3}}2.0 to 2.2{{else}}2.3 and later{{end}}, to be merged into /etc/containerd/config.toml
{{- if gt .Version 2}}, or saved beside
# it as a file that its "imports" names{{end}}. Lists here replace the lists there. Restart containerd afterwards.
version = {{.Version}}

[proxy_plugins.ostree]
  type = "snapshot"
  address = {{quote .Address}}
{{- if gt .Version 2}}
  capabilities = ["rebase", "remap-ids"] # layers are unpacked in parallel; user namespaces need no chown
{{- end}}
  [proxy_plugins.ostree.exports]
    root = {{quote .Root}} # whose disk usage the kubelet looks at

[proxy_plugins.ostree-diff]
  type = "diff"
  address = {{quote .Address}}

# Unpacking by a client: ctr pull --local, nerdctl commit, image volumes.
[plugins."io.containerd.service.v1.diff-service"]
  default = ["ostree-diff", "walking"]

# Unpacking by containerd: ctr pull, nerdctl pull, Kubernetes.
[plugins."io.containerd.transfer.v1.local"]
{{- if gt .Version 2}}
  max_concurrent_unpacks = 3
{{- end}}
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = {{quote .Platform}}
    snapshotter = "ostree"
    differ = "ostree-diff"
{{- if gt .Version 3}}
    optional = true # containerd starts without the snapshotter, too
{{- end}}
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = {{quote .Platform}}
    snapshotter = "overlayfs"
    differ = "walking"

# For Kubernetes, make it the snapshotter of every pod:
{{- if eq .Version 2}}
# [plugins."io.containerd.grpc.v1.cri".containerd]
#   snapshotter = "ostree"
{{- else}}
# [plugins."io.containerd.cri.v1.images"]
#   snapshotter = "ostree"
# or that of one RuntimeClass:
# [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.ostree]
#   runtime_type = "io.containerd.runc.v2"
#   snapshotter = "ostree"
# [plugins."io.containerd.cri.v1.images".runtime_platforms.ostree]
#   platform = "{{.Platform}}"
#   snapshotter = "ostree"
{{- end}}
`))

func (c containerdConfig) String() string {
	var b strings.Builder
	if err := containerdTemplate.Execute(&b, c); err != nil {
		panic(err) // the template is a constant that every test executes
	}
	return b.String()
}

// configVersion is the newest version of the configuration format that a release of containerd reads.
func configVersion(release string) (int, error) {
	major, minor, err := parseRelease(release)
	switch {
	case err != nil:
		return 0, err
	case major > 2 || major == 2 && minor >= 3:
		return 4, nil
	case major == 2:
		return 3, nil
	}
	return 2, nil
}

// parseRelease reads a version as containerd reports it: "2.4.2", "v2.0.0-rc.1", "1.7.35~ds1".
func parseRelease(release string) (major, minor int, err error) {
	parts := strings.SplitN(strings.TrimPrefix(release, "v"), ".", 3)
	if len(parts) < 2 {
		return 0, 0, fmt.Errorf("containerd version %q is not of the form 2.4.2", release)
	}
	if major, err = strconv.Atoi(parts[0]); err == nil {
		minor, err = strconv.Atoi(strings.TrimRightFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' }))
	}
	if err != nil {
		return 0, 0, fmt.Errorf("containerd version %q is not of the form 2.4.2", release)
	}
	return major, minor, nil
}

// containerdRelease asks a running containerd for its version.
func containerdRelease(ctx context.Context, conn grpc.ClientConnInterface) (string, error) {
	v, err := versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", errgrpc.ToNative(err))
	}
	return v.Version, nil
}
