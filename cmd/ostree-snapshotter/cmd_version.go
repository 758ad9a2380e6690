package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is the release, set by the build with -ldflags "-X main.version=...".
var version = ""

// versionInfo is the output of "version --json".
type versionInfo struct {
	Version   string `json:"version"`
	Revision  string `json:"revision,omitempty"`
	GoVersion string `json:"go_version"`
	Platform  string `json:"platform"`
}

func (c *cli) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Long:  "Print the version of this program, the commit it was built from, and the Go version it was built with." + exitHelp(),
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			if c.json {
				return c.writeJSON(v)
			}
			_, err := fmt.Fprintf(c.stdout, "ostree-snapshotter %s %s %s\n", v, v.GoVersion, v.Platform)
			return err
		},
	}
	c.jsonFlag(cmd)
	return cmd
}

// String returns the version, and the revision if it is known.
func (v versionInfo) String() string {
	if v.Revision == "" {
		return v.Version
	}
	return v.Version + " (" + v.Revision + ")"
}

// buildVersion returns the version set by the build, or else the one that the Go tool recorded in the binary.
func buildVersion() versionInfo {
	v := versionInfo{
		Version:   version,
		GoVersion: runtime.Version(),
		Platform:  runtime.GOOS + "/" + runtime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Revision = s.Value
		}
	}
	return v
}
