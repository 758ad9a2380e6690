package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
)

// serveFlags holds the flags that override keys of the configuration.
type serveFlags struct {
	address           string
	containerdAddress string
	logLevel          string
}

func (c *cli) serveCommand() *cobra.Command {
	var flags serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the snapshotter and differ",
		Long: `Run the snapshotter and differ of containerd's proxy_plugins, on one unix socket.

The store is created if it does not exist. SIGTERM and SIGINT end the daemon when its running calls have finished, or
after ten seconds; a second signal ends it at once. Containers keep running: their mounts belong to the kernel. SIGHUP
reads the configuration again and applies its log section; other keys take a restart.` + exitHelp(exitNoRepo),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (*plugin.Config, error) {
				cfg, err := c.loadConfig()
				if err == nil {
					err = flags.apply(cfg)
				}
				return cfg, err
			}
			cfg, err := load()
			if err != nil {
				return err
			}
			ctx, stop := context.WithCancel(cmd.Context())
			defer stop()
			onHangup(ctx, func() { plugin.Reload(ctx, load) })
			return serve(ctx, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.address, "address", "", "`SOCKET` to listen on, instead of the configuration's")
	f.StringVar(&flags.containerdAddress, "containerd-address", "", "containerd's `SOCKET`, instead of the configuration's")
	f.StringVar(&flags.logLevel, "log-level", "", "`LEVEL` to log at, instead of the configuration's: "+strings.Join(plugin.LogLevels, ", "))
	completeValues(cmd, "log-level", plugin.LogLevels...)
	return cmd
}

// apply overrides the configuration with the flags.
func (f *serveFlags) apply(cfg *plugin.Config) error {
	for _, p := range []struct{ flag, key *string }{
		{&f.address, &cfg.Address},
		{&f.containerdAddress, &cfg.Containerd.Address},
	} {
		if *p.flag == "" {
			continue
		}
		abs, err := filepath.Abs(*p.flag)
		if err != nil {
			return err
		}
		*p.key = abs
	}
	if f.logLevel != "" {
		cfg.Log.Level = f.logLevel
	}
	if err := cfg.Validate(); err != nil {
		return withStatus(exitUsage, err)
	}
	return nil
}

// onHangup calls f for each SIGHUP until ctx is done. The signal ends the process no more.
func onHangup(ctx context.Context, f func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	panics.Go(func() error {
		for {
			select {
			case <-hangups:
				_ = panics.Call(func() error { f(); return nil }) // reported
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// gcPercent is the daemon's GOGC: half of Go's own saves 10 MB while a layer is unpacked, for 1 % more processor time.
const gcPercent = 50

// serve runs the daemon until ctx is done, which is not an error.
func serve(ctx context.Context, cfg *plugin.Config) (err error) {
	if err := cfg.Log.Apply(); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	for _, key := range cfg.Removed {
		log.G(ctx).WithField("key", key).Warn("key of the configuration has no effect any more")
	}
	// Open files outlive ctx, so that running calls can finish.
	s, err := plugin.Assemble(context.WithoutCancel(ctx), cfg, plugin.WithVersion(buildVersion().String()))
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.Run(ctx)
}
