package containerd

import (
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestConfigIsTOML(t *testing.T) {
	const address, root = "/run/with \"quotes\".sock", "/srv/back\\slash"
	for _, version := range []int{2, 3, 4} {
		var got struct {
			Version      int `toml:"version"`
			ProxyPlugins map[string]struct {
				Type, Address string
				Capabilities  []string
				Exports       map[string]string
			} `toml:"proxy_plugins"`
			Plugins map[string]map[string]any
		}
		text := Config{Format: version, Address: address, Root: root}.String()
		if err := toml.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("version %d: %v\n%s", version, err, text)
		}
		sn, differ := got.ProxyPlugins[SnapshotterID], got.ProxyPlugins[DifferID]
		switch {
		case got.Version != version:
			t.Errorf("version = %d, want %d", got.Version, version)
		case sn.Type != "snapshot" || differ.Type != "diff" || sn.Address != address || differ.Address != address:
			t.Errorf("version %d: proxy plugins are %+v", version, got.ProxyPlugins)
		case sn.Exports["root"] != root:
			t.Errorf("version %d: root is %q, want %q", version, sn.Exports["root"], root)
		case (len(sn.Capabilities) > 0) != (version > 2):
			t.Errorf("version %d: capabilities %v", version, sn.Capabilities)
		}
		unpack, ok := got.Plugins["io.containerd.transfer.v1.local"]["unpack_config"].([]any)
		if !ok || len(unpack) != 2 {
			t.Errorf("version %d: unpack_config is %v, want ours and that of overlayfs", version, unpack)
		}
	}
}
