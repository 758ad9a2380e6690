package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// daemonFlags are the flags of the commands that may ask our running daemon for its snapshots.
type daemonFlags struct {
	daemon string // the daemon's socket; "" for that of the configuration
}

func (f *daemonFlags) addDaemon(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.daemon, "daemon-address", "",
		"`SOCKET` of the running ostree-snapshotter, instead of the configuration's")
}

// containerdFlags are the flags of the commands that ask containerd, named like those of ctr.
type containerdFlags struct {
	address string // containerd's socket; "" for that of the environment or the configuration
}

func (f *containerdFlags) addContainerd(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.address, "address", "a", "",
		"containerd's `SOCKET`, instead of the configuration's [$CONTAINERD_ADDRESS]")
}

// socket returns the path of containerd's socket.
func (f *containerdFlags) socket(cfg *plugin.Config) string {
	return cmp.Or(f.address, os.Getenv("CONTAINERD_ADDRESS"), cfg.Containerd.Address)
}

func (f *containerdFlags) dial(cfg *plugin.Config) (*containerd.Client, error) {
	return containerd.Dial(f.socket(cfg))
}

// imageFlags are the flags of the commands that take an image of containerd.
type imageFlags struct {
	containerdFlags
	namespace string
}

func (f *imageFlags) addImage(cmd *cobra.Command) {
	f.addContainerd(cmd)
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", cmp.Or(os.Getenv("CONTAINERD_NAMESPACE"), namespaces.Default),
		"containerd `NAMESPACE` of the image [$CONTAINERD_NAMESPACE]")
}

// registryFlags are the flags of "ctr images pull" for access to a registry.
type registryFlags struct {
	containerd.Registry
	passwordStdin bool
}

// addRegistry adds the flags. It takes the command's PreRunE, which reads the password.
func (f *registryFlags) addRegistry(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.HostsDir, "hosts-dir", "",
		"`DIR` that describes registries, instead of containerd's own; without containerd, "+containerd.DefaultHostsDir)
	fl.BoolVar(&f.PlainHTTP, "plain-http", false, "ask the registry without TLS")
	fl.StringVarP(&f.User, "user", "u", "", "`USER[:PASSWORD]` for the registry; others see it in the list of processes")
	fl.BoolVar(&f.passwordStdin, "password-stdin", false, "read the password of --user from standard input")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return f.readPassword(cmd.InOrStdin()) }
}

// pullFlags are the flags of "ctr images pull".
type pullFlags struct {
	registryFlags
	snapshotter string
}

func (f *pullFlags) addPull(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.snapshotter, "snapshotter", containerd.SnapshotterID,
		"`NAME` of this snapshotter in containerd's configuration")
	f.addRegistry(cmd)
}

// maxPassword is the size of the largest password that is read. Tokens of registries have a few KiB.
const maxPassword = 64 << 10

// readPassword completes USER by the password that r consists of, with --password-stdin. One line end after it is none
// of its own.
func (f *registryFlags) readPassword(r io.Reader) error {
	if !f.passwordStdin {
		return nil
	}
	if f.User == "" || strings.Contains(f.User, ":") {
		return usagef("--password-stdin needs --user USER, without a password")
	}
	b, err := io.ReadAll(io.LimitReader(r, maxPassword+1))
	if err != nil {
		return fmt.Errorf("read the password: %w", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case password == "":
		return usagef("standard input has no password")
	case len(b) > maxPassword:
		return usagef("standard input has more than %d bytes, which is no password", maxPassword)
	}
	f.User += ":" + password
	return nil
}
