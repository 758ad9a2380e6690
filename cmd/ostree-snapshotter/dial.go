package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// dialContainerd returns a client of the containerd that the flag names, or the environment, or the configuration.
func (c *cli) dialContainerd(cfg *plugin.Config) (*containerd.Client, error) {
	return containerd.Dial(c.containerdSocket(cfg))
}

func (c *cli) containerdSocket(cfg *plugin.Config) string {
	return cmp.Or(c.containerdAddress, os.Getenv("CONTAINERD_ADDRESS"), cfg.Containerd.Address)
}

// dialUnix connects to a unix socket. Addresses can have the form that ctr takes, unix:///run/...
func dialUnix(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
}

// grpcClient returns a client of our daemon at a unix socket. The connection is made by the first call, which fails at
// once if that cannot be done.
func grpcClient(address string, dial func(context.Context, string) (net.Conn, error)) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(address, "unix://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return conn, nil
}

// maxMessage is the size of the largest message that the daemon sends.
const maxMessage = 16 << 20
