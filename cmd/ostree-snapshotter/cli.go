package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// cli is one run of the program: its streams, and the flags common to its commands. Other flags are in a struct of each
// command.
type cli struct {
	stdin          io.Reader // nil for that of the process
	stdout, stderr io.Writer
	json           bool // --json of the commands that print a report

	configFile string // --config; "" for the default file, if it exists
	root       string // --root; "" for that of the configuration

	openDir func(name string) (*atfs.Dir, error) // opens the directories of a store; tests replace it
}

// groupOther is the group of commands that belong to no other.
const groupOther = "Other:"

func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ostree-snapshotter",
		Short: "A containerd snapshotter that keeps image layers in an ostree repository",
		Long: `ostree-snapshotter is a containerd snapshotter and differ. Every distinct file of every image layer exists once,
as an object of an ostree repository; containers run on composefs images over the objects, or on hard-link checkouts.

"ostree-snapshotter serve" is the daemon. The other commands look at its store, while it runs or not; and those from
"deploy" on make an image the system that boots, and go back.`,
		Version:       buildVersion().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("ostree-snapshotter {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withHint(withStatus(exitUsage, err), "\"%s --help\" lists the flags", cmd.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&c.configFile, "config", "", "configuration `FILE` (default "+defaultConfigFile+" where it exists)")
	f.StringVar(&c.root, "root", "", "`DIR` that holds the store, instead of the configuration's")
	root.CompletionOptions.HiddenDefaultCmd = false
	for _, g := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Daemon and configuration:", []*cobra.Command{c.serveCommand(), c.configCommand()}},
		{"Store:", []*cobra.Command{
			c.layersCommand(),
			c.dfCommand(),
			c.fsckCommand(),
			c.pruneCommand(),
			c.imageCommand(),
		}},
		{"Operating system from an image:", []*cobra.Command{
			c.deployCommand(),
			c.upgradeCommand(),
			c.switchCommand(),
			c.installCommand(),
			c.statusCommand(),
			c.rollbackCommand(),
			c.pinCommand(),
			c.unpinCommand(),
			c.undeployCommand(),
			c.kargsCommand(),
			c.configDiffCommand(),
			c.cleanupCommand(),
		}},
		{"For systemd units:", []*cobra.Command{c.finalizeStagedCommand(), c.bootCompleteCommand()}},
		{groupOther, []*cobra.Command{c.benchCommand(), c.verifyImageCommand(), c.versionCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, cmd := range g.commands {
			cmd.GroupID = g.title
		}
		root.AddCommand(g.commands...)
	}
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	return root
}

// knownCommand refuses the arguments of a command that has only subcommands.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := usagef("unknown command %q for %q", args[0], cmd.CommandPath())
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		return withHint(err, "did you mean %q?", cmd.CommandPath()+" "+like[0])
	}
	return withHint(err, "\"%s --help\" lists the commands", cmd.CommandPath())
}

// noArgs refuses positional arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return withHint(usagef("%q takes no argument, got %q", cmd.CommandPath(), strings.Join(args, " ")),
		"\"%s --help\" describes it", cmd.CommandPath())
}

// jsonFlag adds the --json flag.
func (c *cli) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.json, "json", false, "write one JSON document instead of a table")
}

// writeJSON writes v to standard output as one indented JSON document.
func (c *cli) writeJSON(v any) error {
	enc := json.NewEncoder(c.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// println writes a line to standard output.
func (c *cli) println(line string) error {
	_, err := fmt.Fprintln(c.stdout, deploy.Printable(line))
	return err
}

// printableExcept is [deploy.Printable], and keeps a control character that separates.
func printableExcept(sep rune, text string) string {
	parts := strings.Split(text, string(sep))
	for i, s := range parts {
		parts[i] = deploy.Printable(s)
	}
	return strings.Join(parts, string(sep))
}

// table writes rows of tab-separated cells to standard output, aligned in columns.
func (c *cli) table(rows ...string) error {
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	var errs []error
	for _, row := range rows {
		_, err := fmt.Fprintln(w, printableExcept('\t', row))
		errs = append(errs, err)
	}
	return errors.Join(append(errs, w.Flush())...)
}

// oneArg demands exactly one positional argument.
func oneArg(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return withHint(usagef("%q takes one argument, %s", cmd.CommandPath(), name), "\"%s --help\" describes it", cmd.CommandPath())
	}
}
