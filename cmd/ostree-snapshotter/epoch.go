package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
)

// epochValue is a flag for an epoch of SELinux labels.
type epochValue struct{ epoch *oscommit.Epoch }

func (v *epochValue) Set(text string) error {
	e, ok := oscommit.ParseEpoch(text)
	if !ok {
		return errors.New("it is 0 or 1")
	}
	v.epoch = &e
	return nil
}

func (v *epochValue) String() string {
	if v.epoch == nil {
		return ""
	}
	return v.epoch.String()
}

func (v *epochValue) Type() string { return "epoch" }

// addEpoch adds the flag to a command that makes OS commits.
func (v *epochValue) addEpoch(cmd *cobra.Command) {
	const name = "selinux-labeling-epoch"
	cmd.Flags().Var(v, name, "SELinux labels of /usr/etc: `N` is 0 for its own, 1 for those of /etc; upgrades keep it")
	completeValues(cmd, name, oscommit.EpochUsrEtc.String(), oscommit.EpochEtc.String())
}
