package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// completeTime bounds the time that a shell waits for completions.
const completeTime = 2 * time.Second

// completeValues offers a shell the values of a flag that takes one of a few.
func completeValues(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the command has no such flag
	}
}

// completeIndex offers a shell the indexes of deployments, with their titles.
func (c *cli) completeIndex(f *systemFlags) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) (words []string, _ cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
		defer cancel()
		quiet := *c
		quiet.stderr = io.Discard
		err := quiet.viewSystem(ctx, f, func(_ *deploy.System, st *sysroot.State) error {
			for i, d := range st.All() {
				words = append(words, fmt.Sprintf("%d\t%s", i, deploy.Title(d)))
			}
			return nil
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}
