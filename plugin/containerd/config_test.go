package containerd

import (
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestConfigIsTOML(t *testing.T) {
	const address, root = "/run/with \"quotes\".sock", "/srv/back\\slash"
	for _, tc := range []struct {
		containerd Version
		version    int
		parallel   bool
		releases   string
	}{
		{Version{1, 7}, 2, false, "1.7."},
		{Version{2, 0}, 3, false, "2.0 and 2.1; "},
		{Version{2, 1}, 3, false, "2.0 and 2.1; "},
		{Version{2, 2}, 3, true, "2.2."},
		{Version{2, 3}, 4, true, "2.3 and later."},
		{Version{2, 4}, 4, true, "2.3 and later."},
	} {
		version := tc.version
		var got struct {
			Version      int `toml:"version"`
			ProxyPlugins map[string]struct {
				Type, Address string
				Capabilities  []string
				Exports       map[string]string
			} `toml:"proxy_plugins"`
			Plugins map[string]map[string]any
		}
		text := Config{Version: tc.containerd, Address: address, Root: root}.String()
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
		case slices.Contains(sn.Capabilities, "rebase") != tc.parallel || !slices.Contains(sn.Capabilities, "remap-ids"):
			t.Errorf("containerd %v: capabilities %v", tc.containerd, sn.Capabilities)
		case !tc.parallel && !slices.Equal(differ.Capabilities, sn.Capabilities): // releases of 1.7 mix them up
			t.Errorf("containerd %v: capabilities %v of the differ, want those of the snapshotter", tc.containerd, differ.Capabilities)
		case !strings.HasPrefix(text, "# Configuration for containerd "+tc.releases):
			t.Errorf("containerd %v: the configuration begins %.80q", tc.containerd, text)
		}
		if _, ok := got.Plugins["io.containerd.transfer.v1.local"]["max_concurrent_unpacks"]; ok != tc.parallel {
			t.Errorf("containerd %v: has max_concurrent_unpacks: %v, want %v", tc.containerd, ok, tc.parallel)
		}
		unpack, ok := got.Plugins["io.containerd.transfer.v1.local"]["unpack_config"].([]any)
		if !ok || len(unpack) != 2 {
			t.Errorf("version %d: unpack_config is %v, want ours and that of overlayfs", version, unpack)
		}
	}
}

func TestVerifierConfig(t *testing.T) {
	const dir = "/srv/with \"quotes\""
	for _, want := range []string{"", dir} {
		var got struct {
			Plugins map[string]struct {
				BinDir       string `toml:"bin_dir"`
				MaxVerifiers int    `toml:"max_verifiers"`
			}
		}
		text := Config{Version: Version{2, 4}, Address: "/a", Root: "/r", Verifiers: want}.String()
		if err := toml.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		p, ok := got.Plugins["io.containerd.image-verifier.v1.bindir"]
		if ok != (want != "") || p.BinDir != want || ok && p.MaxVerifiers != -1 {
			t.Errorf("directory %q: the plugin's configuration is %+v, %v", want, p, ok)
		}
	}
}
