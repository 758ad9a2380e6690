package node

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"text/template"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// Everything that containerd stores is below the temporary directories, and the measured snapshotter is the only one.
// max_concurrent_unpacks is 3 for all snapshotters; those that cannot unpack layers in parallel do not.
var config = template.Must(template.New("containerd.toml").Parse(`version = 3
root = "{{.Store}}/containerd"
state = "{{.Dir}}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
{{- range .Others}}
  "io.containerd.snapshotter.v1.{{.}}",
{{- end}}
]

[grpc]
  address = "{{.Dir}}/c.sock"
[ttrpc]
  address = "{{.Dir}}/c.sock.ttrpc"
{{if .Ours}}
{{.Proxies}}{{end}}
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/opt"
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "{{.Dir}}/s"
[plugins."io.containerd.differ.v1.erofs"]
  mkfs_options = ["--sort=none"]
[plugins."io.containerd.service.v1.diff-service"]
  default = [{{if ne .Differ "walking"}}"{{.Differ}}", {{end}}"walking"]
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_unpacks = 3
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "{{.Snapshotter}}"
    differ = "{{.Differ}}"
    optional = true
`))

// configure writes the configuration files.
func (p *private) configure() error {
	differ := "walking"
	switch p.snapshotter {
	case Ostree, OstreeHardlink:
		differ = "ostree-diff"
	case "erofs":
		differ = "erofs"
	}
	others := slices.DeleteFunc(Known(), func(s string) bool { return s == p.snapshotter || isOurs(s) })
	ours := "version = 1\n"
	if p.snapshotter == OstreeHardlink {
		ours += "checkout = \"hardlink\"\n"
	}
	var b bytes.Buffer
	err := config.Execute(&b, map[string]any{
		"Dir": p.dir, "Store": p.store(), "Snapshotter": p.snapshotter, "Differ": differ, "Others": others,
		"Ours": isOurs(p.snapshotter), "Proxies": containerd.Proxies{
			ID: p.snapshotter, Address: p.path("o.sock"), Root: p.store() + "/ostree", Version: containerd.Version{Major: 2, Minor: 2},
		},
	})
	if err != nil {
		return fmt.Errorf("configure containerd: %w", err)
	}
	for name, text := range map[string][]byte{"containerd.toml": b.Bytes(), "ostree.toml": []byte(ours)} {
		//nolint:forbidigo // a file in a temporary directory of ours
		if err := os.WriteFile(p.path(name), text, 0o600); err != nil {
			return fmt.Errorf("configure containerd: %w", err)
		}
	}
	return nil
}
