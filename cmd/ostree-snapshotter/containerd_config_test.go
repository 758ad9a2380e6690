package main

import (
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestConfigVersion(t *testing.T) {
	for _, tt := range []struct {
		release string
		want    int
	}{
		{"1.7.35", 2},
		{"v1.7.35~ds1", 2},
		{"2.0.0-rc.1", 3},
		{"2.2.9", 3},
		{"v2.3.0", 4},
		{"2.4.2+unknown", 4},
		{"2.10", 4},
		{"2.3-dev", 4},
		{"3.0.0", 4},
	} {
		got, err := configVersion(tt.release)
		if err != nil || got != tt.want {
			t.Errorf("configVersion(%q) = %d, %v; want %d", tt.release, got, err, tt.want)
		}
	}
	for _, release := range []string{"", "2", "latest", "two.four", "2.x"} {
		if got, err := configVersion(release); err == nil {
			t.Errorf("configVersion(%q) = %d, want an error", release, got)
		}
	}
}

func TestContainerdConfigIsTOML(t *testing.T) {
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
		text := newContainerdConfig(version, address, root).String()
		if err := toml.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("version %d: %v\n%s", version, err, text)
		}
		sn, differ := got.ProxyPlugins[snapshotterID], got.ProxyPlugins[differID]
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
