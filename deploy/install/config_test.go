package install_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/install"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
)

func TestConfigFiles(t *testing.T) {
	got := install.ConfigFiles(func(dir string) []string {
		return map[string][]string{
			"usr/lib/bootc/install": {"00-base.toml", "50-x.toml", "README"},
			"etc/bootc/install":     {"10-site.toml", "50-x.toml", ".toml.swp", ".#50-x.toml"},
		}[dir]
	})
	want := []string{"usr/lib/bootc/install/00-base.toml", "etc/bootc/install/10-site.toml", "etc/bootc/install/50-x.toml"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestConfigMerge(t *testing.T) {
	for name, tt := range map[string]struct {
		files []string
		want  install.Config
	}{
		"nothing": {files: []string{"", "[install]\n"}},
		"everything": {
			files: []string{`[install]
kargs = ["console=ttyS0", "a b=\"c d\""]
stateroot = "default"
block = ["direct", "tpm2-luks"]
bootloader = "systemd"
[install.filesystem.root]
type = "xfs"
[install.ostree]
bls-append-except-default = 'grub_users=""'
`},
			want: install.Config{
				Filesystem: "xfs", Stateroot: "default", Kargs: kargs.List{"console=ttyS0", "a", `b="c d"`},
				ExceptDefault: `grub_users=""`, Blocks: []string{"direct", "tpm2-luks"},
			},
		},
		"later files": {
			files: []string{
				"[install]\nstateroot = \"a\"\nkargs = [\"one\"]\nblock = [\"direct\"]\n[install.filesystem.root]\ntype = \"xfs\"\n",
				"[install]\nstateroot = \"b\"\nkargs = [\"two\", \"one\"]\nblock = []\n[install.filesystem.root]\ntype = \"btrfs\"\n",
				"[install]\n",
			},
			want: install.Config{Filesystem: "btrfs", Stateroot: "b", Kargs: kargs.List{"one", "two", "one"}, Blocks: []string{}},
		},
		"older key":               {files: []string{"[install]\nroot-fs-type = \"xfs\"\n"}, want: install.Config{Filesystem: "xfs"}},
		"older key, later":        {files: []string{"install.filesystem.root.type = \"btrfs\"\n", "install.root-fs-type = \"xfs\"\n"}, want: install.Config{Filesystem: "btrfs"}},
		"another architecture":    {files: []string{"[install]\nmatch-architectures = [\"aarch64\"]\nkargs = [\"x\"]\nunknown = 1\n"}},
		"this architecture":       {files: []string{"[install]\nmatch-architectures = [\"aarch64\", \"x86_64\"]\nkargs = [\"x\"]\n"}, want: install.Config{Kargs: kargs.List{"x"}}},
		"this architecture in Go": {files: []string{"[install]\nmatch-architectures = [\"amd64\"]\nkargs = [\"x\"]\n"}, want: install.Config{Kargs: kargs.List{"x"}}},
		"no architecture":         {files: []string{"[install]\nmatch-architectures = []\nkargs = [\"x\"]\n"}},
		"keys without effect": {
			files: []string{"top = 1\n[install]\nroot-mount-spec = \"LABEL=x\"\nbootloader = \"grub\"\n[install.bootupd]\nskip-boot-uuid = true\n"},
			want:  install.Config{Ignored: []string{"top", "install.root-mount-spec", "install.bootupd", "install.bootloader"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got install.Config
			for _, text := range tt.files {
				if err := got.Merge([]byte(text), "amd64"); err != nil {
					t.Fatal(err)
				}
			}
			if got.Filesystem != tt.want.Filesystem || got.Stateroot != tt.want.Stateroot || !slices.Equal(got.Kargs, tt.want.Kargs) ||
				got.ExceptDefault != tt.want.ExceptDefault || !reflect.DeepEqual(got.Blocks, tt.want.Blocks) || !slices.Equal(got.Ignored, tt.want.Ignored) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestConfigMergeErrors(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"no TOML":                    {"[install\n", "toml"},
		"type":                       {"[install]\nkargs = \"x\"\n", "kargs"},
		"too large":                  {strings.Repeat("#\n", install.MaxConfig), "more than 16384 bytes"},
		"control character":          {"[install]\nkargs = [\"a\\u0007b\"]\n", "control character"},
		"arguments of ostree":        {"[install]\nkargs = [\"ostree=/x\"]\n", `"ostree=/x" cannot be set`},
		"too many arguments":         {"[install]\nkargs = [\"" + strings.Repeat("x ", 300) + "\"]\n", "more than 256 kernel arguments"},
		"control character in lines": {"[install.ostree]\nbls-append-except-default = \"a\\nb\"\n", "control character"},
	} {
		t.Run(name, func(t *testing.T) {
			var c install.Config
			if err := c.Merge([]byte(tt.text), "amd64"); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}
