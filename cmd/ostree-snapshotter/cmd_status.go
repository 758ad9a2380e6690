package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// statusReport is the output of "status --json".
type statusReport struct {
	Sysroot     string          `json:"sysroot"`
	Deployments []deploymentRow `json:"deployments"`
	Refused     *deploy.Refusal `json:"refused,omitempty"` // the image that an upgrade would have deployed last
	Notes       []string        `json:"notes"`
}

// deploymentRow is a row of status.
type deploymentRow struct {
	Index int `json:"index"` // 0 for a staged one, then in the boot loader's order
	deploymentName

	Default  bool `json:"default"` // boots next, unless another one is staged
	Booted   bool `json:"booted"`
	Staged   bool `json:"staged"`
	Locked   bool `json:"locked"` // staged, and will not be finalized
	Pending  bool `json:"pending"`
	Rollback bool `json:"rollback"`

	Digest digest.Digest `json:"digest,omitempty"` // of the image's manifest
	Time   *time.Time    `json:"timestamp,omitempty"`

	Reference string          `json:"image_reference,omitempty"` // as the origin has it, with its demand
	Signature *deploy.Verdict `json:"signature,omitempty"`       // why the image was accepted; null if that was not asked

	Kernel string     `json:"bootcsum"`
	Unique *int64     `json:"unique_bytes,omitempty"`
	Shared *int64     `json:"shared_bytes,omitempty"`
	Tries  *bootTries `json:"boot_tries,omitempty"`
}

// bootTries is the boot counting of a deployment that has to prove itself.
type bootTries struct {
	Left   int  `json:"left"`
	Done   int  `json:"done"`
	Failed bool `json:"failed"` // no tries left
}

func (c *cli) statusCommand() *cobra.Command {
	var f systemFlags
	var verbose bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "List the deployments of the system",
		Long: `List the deployments of the system: which one is booted, which boots next, which is there to fall back to, and the image
of each. With -v it also tells which signatures the image was accepted by. If an upgrade has refused an image since the
system was booted, it says so.

"unique" is the space that is freed if only this deployment goes, with its own /etc and other copies; "shared" is the rest of
its commit's space, shared with other deployments, layers of images, or other content of the repository. /var, which all
deployments of a stateroot have in common, and /boot do not count.` +
			exitHelp(exitNoSysroot, exitCorrupt, exitInterrupted),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.status(cmd.Context(), &f, verbose) },
	}
	f.addSysroot(cmd)
	f.addESP(cmd)
	f.addStateroot(cmd, "list only deployments of the stateroot `NAME`")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "also list commit, digest, time and kernel arguments")
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) status(ctx context.Context, f *systemFlags, verbose bool) error {
	return c.viewSystem(ctx, f, func(s *deploy.System, st *sysroot.State) error {
		r, err := c.describe(ctx, s, st)
		if err != nil {
			return err
		}
		r.keepStateroot(f.stateroot)
		if c.json {
			return c.writeJSON(r)
		}
		return c.printStatus(r, verbose, time.Now())
	})
}

// addRefusal adds the last refusal, or a note if its record cannot be read.
func (r *statusReport) addRefusal(f *deploy.Refusal, err error) {
	switch {
	case err != nil:
		r.Notes = append(r.Notes, fmt.Sprintf("whether an image was refused is not known: %v", err))
	case f != nil:
		r.Refused = f
		r.Notes = append(r.Notes, fmt.Sprintf("%s %s was refused at %s: %s", f.Image, f.Digest, f.Time.Format(time.RFC3339), f.Reason))
	}
}

// describe makes the report.
func (c *cli) describe(ctx context.Context, s *deploy.System, st *sysroot.State) (*statusReport, error) {
	list := st.All()
	p := c.newProgress("measuring deployments")
	sizes, err := s.Footprints(ctx, list)
	p.stop()
	r := &statusReport{Sysroot: s.Path, Deployments: make([]deploymentRow, 0, len(list)), Notes: append([]string{}, st.Notes...)}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil: // a system with a damaged repository still boots
		sizes = make([]*sysroot.Footprint, len(list))
		r.Notes = append(r.Notes, fmt.Sprintf("sizes of deployments are unavailable: %v", err))
	}
	for i, d := range list {
		row := newDeploymentRow(st, d)
		row.Index = i
		if err := row.addCommit(s.Repo(), d.Commit); err != nil {
			return nil, err
		}
		if sizes[i] != nil {
			row.Unique, row.Shared = &sizes[i].Unique, &sizes[i].Shared
		}
		r.Deployments = append(r.Deployments, row)
	}
	r.addRefusal(s.LastRefusal())
	if note := fellBack(st); note != "" {
		r.Notes = append(r.Notes, note)
	}
	return r, nil
}

func newDeploymentRow(st *sysroot.State, d *sysroot.Deployment) deploymentRow {
	row := deploymentRow{
		deploymentName: newDeploymentName(d),
		Default:        d == st.Default(),
		Booted:         st.Booted != nil && d == st.Booted,
		Staged:         st.Staged != nil && d == st.Staged.Deployment,
		Pending:        d == st.Pending(),
		Rollback:       d == st.Rollback(),
		Kernel:         d.BootCsum,
		Tries:          newBootTries(d.Tries),
		Signature:      deploy.VerdictOf(d),
	}
	row.Reference, _ = d.ImageReference()
	row.Locked = row.Staged && st.Staged.Locked
	return row
}

func newBootTries(t *bls.Tries) *bootTries {
	if t == nil {
		return nil
	}
	return &bootTries{Left: t.Left, Done: t.Done, Failed: t.Left == 0}
}

// addCommit adds the commit's data. A missing or damaged commit is no error: the system boots without.
func (r *deploymentRow) addCommit(repo *objectstore.Repo, sum objectstore.Checksum) error {
	c, err := repo.Commit(sum)
	if errors.Is(err, objectstore.ErrNotExist) || errors.Is(err, objectstore.ErrCorrupt) {
		return nil
	}
	if err != nil {
		return err
	}
	if d, ok := c.MetaString(oscommit.ManifestDigest); ok {
		r.Digest = digest.Digest(d)
	}
	if c.Timestamp > 0 {
		r.Time = new(c.Time())
	}
	return nil
}

// fellBack reports that the default has not booted, if another one is booted for that reason.
func fellBack(st *sysroot.State) string {
	d := st.Default()
	if st.Booted == nil || d == st.Booted || !d.Failed() {
		return ""
	}
	return fmt.Sprintf("%s failed to boot %d times, and the boot loader fell back to %s", deploy.Title(d), d.Tries.Done, deploy.Title(st.Booted))
}

// keepStateroot keeps only the deployments of one stateroot; "" keeps all.
func (r *statusReport) keepStateroot(name string) {
	if name == "" {
		return
	}
	kept := r.Deployments[:0]
	for _, d := range r.Deployments {
		if d.Stateroot == name {
			kept = append(kept, d)
		}
	}
	r.Deployments = kept
}

func (c *cli) printStatus(r *statusReport, verbose bool, now time.Time) error {
	if len(r.Deployments) == 0 {
		_, err := fmt.Fprintln(c.stdout, "no deployments")
		return err
	}
	rows := []string{"INDEX\tSTATE\tSTATEROOT\tIMAGE\tVERSION\tAGE\tUNIQUE\tSHARED"}
	for _, d := range r.Deployments {
		rows = append(rows, fmt.Sprintf("%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s", d.Index, dash(strings.Join(d.states(), ",")), d.Stateroot,
			dash(deploy.Printable(d.source())), dash(deploy.Printable(d.Version)), age(d.Time, now), optionalSize(d.Unique), optionalSize(d.Shared)))
	}
	if err := c.table(rows...); err != nil {
		return err
	}
	if verbose {
		for _, d := range r.Deployments {
			if err := c.printDeployment(&d); err != nil {
				return err
			}
		}
	}
	for _, n := range r.Notes {
		c.note("%s", n)
	}
	return nil
}

// printDeployment prints the data that the table has no room for.
func (c *cli) printDeployment(d *deploymentRow) error {
	if _, err := fmt.Fprintf(c.stdout, "\ndeployment %d\n", d.Index); err != nil {
		return err
	}
	rows := []string{fmt.Sprintf("  commit\t%s.%d", d.Commit, d.Serial)}
	if d.Digest != "" {
		rows = append(rows, fmt.Sprintf("  digest\t%s", deploy.Printable(d.Digest.String())))
	}
	if d.Reference != "" {
		rows = append(rows, fmt.Sprintf("  origin\t%s", deploy.Printable(d.Reference)))
	}
	rows = append(rows, signatureRows(d.Signature)...)
	if d.Time != nil {
		rows = append(rows, fmt.Sprintf("  time\t%s", d.Time.Format(time.RFC3339)))
	}
	rows = append(rows, fmt.Sprintf("  kernel\t%s", d.Kernel), fmt.Sprintf("  kargs\t%s", deploy.Printable(strings.Join(d.Kargs, " "))))
	if d.Tries != nil {
		rows = append(rows, fmt.Sprintf("  boots\t%d failed, %d left to prove itself", d.Tries.Done, d.Tries.Left))
	}
	return c.table(rows...)
}

// signatureRows says why an image was accepted.
func signatureRows(v *deploy.Verdict) (rows []string) {
	if v == nil {
		return []string{"  signed\tnot checked"}
	}
	by := "by nobody: the policy accepts it without a signature"
	if len(v.Signers) > 0 {
		by = "checked " + v.Time.Format(time.RFC3339)
	}
	rows = append(rows, "  signed\t"+by)
	if v.Rule != "" {
		rows = append(rows, fmt.Sprintf("  rule\t%s of %s", deploy.Printable(v.Rule), deploy.Printable(v.Policy)))
	}
	if v.Remote != "" {
		rows = append(rows, "  remote\t"+deploy.Printable(v.Remote))
	}
	for _, s := range v.Signers {
		text := s.Key + ", " + s.Signature
		if s.Identity != "" {
			text += ", " + s.Identity
		}
		rows = append(rows, "  key\t"+deploy.Printable(text))
	}
	return rows
}

// states returns the states of a deployment in the table.
func (r *deploymentRow) states() (words []string) {
	for _, w := range []struct {
		is   bool
		word string
	}{
		{r.Booted, "booted"},
		{r.Staged, "staged"},
		{r.Locked, "locked"},
		{r.Pending && !r.Staged, "pending"},
		{r.Default && !r.Pending && !r.Booted, "default"},
		{r.Rollback, "rollback"},
		{r.Pinned, "pinned"},
		{r.Tries != nil && !r.Tries.Failed, "unproven"},
		{r.Tries != nil && r.Tries.Failed, "failed"},
	} {
		if w.is {
			words = append(words, w.word)
		}
	}
	return words
}

// source returns the image or refspec of a deployment.
func (r *deploymentRow) source() string {
	if r.Image != "" {
		return r.Image
	}
	return r.Refspec
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func age(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	return strings.TrimSpace(humanize.RelTime(*t, now, "", "in the future"))
}

func optionalSize(n *int64) string {
	if n == nil {
		return "-"
	}
	return size(*n)
}
