package containerd

import (
	"strconv"
	"strings"
	"text/template"

	"github.com/containerd/platforms"
)

// Names of our snapshotter and differ in containerd. They must differ, since both are keys of one table.
const (
	SnapshotterID = "ostree"
	DifferID      = "ostree-diff"
)

// Proxies are the tables of containerd's configuration that make our daemon a snapshotter and a differ.
type Proxies struct {
	ID      string // of the snapshotter; SnapshotterID if it is ""
	Address string // the daemon's socket
	Root    string // of the store
	Version Version
}

var proxyTemplate = template.Must(template.New("proxies").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(
	`[proxy_plugins.{{.ID}}]
  type = "snapshot"
  address = {{quote .Address}}
{{- if .Version.UnpacksInParallel}}
  capabilities = ["rebase", "remap-ids"] # layers are unpacked in parallel; user namespaces need no chown
{{- else}}
  capabilities = ["remap-ids"] # user namespaces need no chown
{{- end}}
  [proxy_plugins.{{.ID}}.exports]
    root = {{quote .Root}} # whose disk usage the kubelet looks at

[proxy_plugins.ostree-diff]
  type = "diff"
  address = {{quote .Address}}
{{- if not .Version.UnpacksInParallel}}
  capabilities = ["remap-ids"] # of no use here, but some releases give a plugin those of another one
{{- end}}
`))

func (p Proxies) String() string {
	if p.ID == "" {
		p.ID = SnapshotterID
	}
	return execute(proxyTemplate, p)
}

// Config is the configuration that containerd needs for our daemon.
type Config struct {
	Version       Version // of containerd, one that is [Version.Supported]
	Address, Root string  // of the daemon
	Verifiers     string  // directory of programs that check images before they are pulled; "" for none
}

// Every key is documented by containerd. A list in a drop-in file replaces the list of the main file, so the entries
// for the built-in snapshotter are repeated.
var configTemplate = template.Must(template.New("config").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(
	`# Configuration for containerd {{.For}}.
{{- if eq .Format 2}}
# Merge it into /etc/containerd/config.toml itself. In another file, that "imports" names, a section below would replace
# the whole section of the same plugin there. Lists here replace the lists there. Restart containerd afterwards.
{{- else}}
# Save it as a file that "imports" in /etc/containerd/config.toml names; or merge it into that file, without the line
# "version":{{if eq .Format 4}} in a file of version 4 containerd ignores [grpc] and other sections of earlier versions.
{{- else}} the names of other sections depend on it.
{{- end}}
# Lists here replace the lists there. Restart containerd afterwards.
{{- end}}
version = {{.Format}}

{{.Proxies}}
# Unpacking by a client: ctr pull --local, nerdctl commit, image volumes.
[plugins."io.containerd.service.v1.diff-service"]
  default = ["ostree-diff", "walking"]

# Unpacking by containerd: ctr pull, nerdctl pull, Kubernetes.
[plugins."io.containerd.transfer.v1.local"]
{{- if .Parallel}}
  max_concurrent_unpacks = 3
{{- end}}
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = {{quote .Platform}}
    snapshotter = "ostree"
    differ = "ostree-diff"
{{- if gt .Format 3}}
    optional = true # containerd starts without the snapshotter, too
{{- end}}
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = {{quote .Platform}}
    snapshotter = "overlayfs"
    differ = "walking"

{{- if .Verifiers}}

# Images are checked before containerd pulls them. It pulls any image if this directory is missing or empty. Each file in it is a
# verifier; the one of this program is: #!/bin/sh
#                                       exec ostree-snapshotter verify-image "$@"
[plugins."io.containerd.image-verifier.v1.bindir"]
  bin_dir = {{quote .Verifiers}}
  max_verifiers = -1 # none is skipped
  per_verifier_timeout = "60s"
{{- end}}

# For Kubernetes, make it the snapshotter of every pod:
{{- if eq .Format 2}}
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

// String returns the configuration as TOML, with comments.
func (c Config) String() string {
	format := c.Version.ConfigFormat()
	platform := "linux"
	if format < 4 { // before containerd 2.3, which has format 4, a platform has to match completely
		platform = platforms.Format(platforms.DefaultSpec())
	}
	releases := "2.3 and later"
	switch {
	case format == 2:
		releases = "1.7"
	case !c.Version.UnpacksInParallel():
		releases = "2.0 and 2.1; later releases read it too, but unpack no layers in parallel"
	case format == 3:
		releases = "2.2"
	}
	return execute(configTemplate, map[string]any{
		"For": releases, "Format": format, "Parallel": c.Version.UnpacksInParallel(), "Platform": platform,
		"Verifiers": c.Verifiers,
		"Proxies":   Proxies{Address: c.Address, Root: c.Root, Version: c.Version},
	})
}

func execute(t *template.Template, data any) string {
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		panic(err) // tests execute the templates, which are constant
	}
	return b.String()
}
