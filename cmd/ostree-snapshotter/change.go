package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// changeReport is the output of a command that changes a system, with --json.
type changeReport struct {
	DryRun  bool `json:"dry_run"`
	Changed bool `json:"changed"` // false: there was nothing to do
	// Deployments are the resulting ones, in boot order; a staged one is not among them until it is finalized.
	Deployments []deploymentName `json:"deployments"`
	New         *deploymentName  `json:"new,omitempty"`
	Staged      bool             `json:"staged"` // New is staged
	Removed     []deploymentName `json:"removed"`
	Etc         *etcReport       `json:"etc,omitempty"`
	Image       *imageReport     `json:"from_image,omitempty"`
	Cleanup     *cleanupReport   `json:"cleanup,omitempty"`
	Notes       []string         `json:"notes"`
}

// deploymentName identifies a deployment.
type deploymentName struct {
	Stateroot string               `json:"stateroot"`
	Commit    objectstore.Checksum `json:"commit"`
	Serial    int                  `json:"serial"`
	Image     string               `json:"image,omitempty"`
	Refspec   string               `json:"refspec,omitempty"`
	Version   string               `json:"version,omitempty"`
	Kargs     []string             `json:"kargs"`
	Pinned    bool                 `json:"pinned"`
}

// etcReport lists the changes of /etc that a deployment takes over.
type etcReport struct {
	Modified  int           `json:"modified"`
	Removed   int           `json:"removed"`
	Added     int           `json:"added"`
	Changes   []etcChange   `json:"changes"`
	Conflicts []etcConflict `json:"conflicts"`
}

// etcChange is one difference between /etc and the image's.
type etcChange struct {
	Path   string `json:"path"`
	Change string `json:"change"` // see etcWords
	Xattrs bool   `json:"only_xattrs,omitempty"`
}

// etcConflict is a change of /etc that cannot be taken over.
type etcConflict struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// imageReport describes the image of a deployment.
type imageReport struct {
	Digest  digest.Digest `json:"digest"`
	Dropped []droppedFile `json:"dropped"`
}

// droppedFile is a file of the image that its deployment does not have.
type droppedFile struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

func newImageReport(manifest digest.Digest, dropped []oscommit.Dropped) *imageReport {
	r := &imageReport{Digest: manifest, Dropped: make([]droppedFile, 0, len(dropped))}
	for _, d := range dropped {
		r.Dropped = append(r.Dropped, droppedFile(d))
	}
	return r
}

func newDeploymentName(d *sysroot.Deployment) deploymentName {
	n := deploymentName{
		Stateroot: d.Stateroot, Commit: d.Commit, Serial: d.Serial, Version: d.Version,
		Kargs: append([]string{}, d.Kargs...), Pinned: d.Pinned(),
	}
	n.Image, n.Refspec = deploy.OriginName(d)
	return n
}

func deploymentNames(list []*sysroot.Deployment) []deploymentName {
	names := make([]deploymentName, 0, len(list))
	for _, d := range list {
		names = append(names, newDeploymentName(d))
	}
	return names
}

// etcWords are the kinds of changes in JSON.
var etcWords = map[etcmerge.Kind]string{
	etcmerge.Added:    "added",
	etcmerge.Modified: "modified",
	etcmerge.Removed:  "removed",
}

// printEtc lists changes as "ostree admin config-diff" does.
func (c *cli) printEtc(list []etcmerge.Change) error {
	for _, ch := range list {
		note := ""
		if ch.Xattrs {
			note = " (extended attributes)"
		}
		if _, err := fmt.Fprintf(c.stdout, "%s    %s%s\n", ch.Kind, deploy.Printable(ch.Path), note); err != nil {
			return err
		}
	}
	return nil
}

func etcChanges(list []etcmerge.Change) []etcChange {
	changes := make([]etcChange, 0, len(list))
	for _, c := range list {
		changes = append(changes, etcChange{Path: c.Path, Change: etcWords[c.Kind], Xattrs: c.Xattrs})
	}
	return changes
}

// newChangeReport describes a plan that has been executed, or would be.
func newChangeReport(p *sysroot.Plan, dryRun bool) *changeReport {
	r := &changeReport{
		DryRun:      dryRun,
		Changed:     true,
		Deployments: deploymentNames(p.Deployments),
		Staged:      p.Staged,
		Removed:     deploymentNames(p.Removed),
		Notes:       append([]string{}, p.Notes...),
	}
	if p.New != nil {
		r.New = new(newDeploymentName(p.New))
	}
	if p.Etc != nil {
		r.Etc = &etcReport{Changes: etcChanges(p.Etc.Changes), Conflicts: make([]etcConflict, 0, len(p.Etc.Conflicts))}
		for _, c := range p.Etc.Conflicts {
			r.Etc.Conflicts = append(r.Etc.Conflicts, etcConflict(c))
		}
		r.Etc.Modified, r.Etc.Removed, r.Etc.Added = p.Etc.Counts()
	}
	return r
}

// unchanged is the report of a command with nothing to do.
func unchanged(st *sysroot.State, dryRun bool) *changeReport {
	return &changeReport{
		DryRun: dryRun, Deployments: deploymentNames(st.Deployments), Removed: []deploymentName{}, Notes: []string{},
	}
}

// change executes a plan, or with --dry-run prints it. Done is printed in the end, without --json.
func (c *cli) change(ctx context.Context, s *deploy.System, p *sysroot.Plan, flags *systemFlags, done string) error {
	var err error
	if !flags.dryRun {
		err = s.Execute(ctx, p)
	}
	return c.executed(newChangeReport(p, flags.dryRun), p, done, err)
}

// executed reports an executed plan, unless it has failed.
func (c *cli) executed(r *changeReport, p *sysroot.Plan, done string, err error) error {
	if err != nil && !is(err, deploy.ErrNotArmed, objectstore.ErrNotRemoved) {
		return err
	}
	return errors.Join(c.changed(r, p, done), err)
}

// changed prints what was, or would be, done.
func (c *cli) changed(r *changeReport, p *sysroot.Plan, done string) error {
	if c.json {
		return c.writeJSON(r)
	}
	if r.DryRun {
		_, err := fmt.Fprintln(c.stdout, printableExcept('\n', p.String()))
		if p.Etc != nil {
			err = errors.Join(err, c.printEtc(p.Etc.Changes))
		}
		return err
	}
	err := c.println(done)
	for _, n := range r.Notes {
		c.note("%s", n)
	}
	return err
}

// noChange reports that there was nothing to do.
func (c *cli) noChange(st *sysroot.State, flags *systemFlags, why string) error {
	if c.json {
		return c.writeJSON(unchanged(st, flags.dryRun))
	}
	return c.println("no change: " + why)
}

// deployed describes a new deployment.
func deployed(p *sysroot.Plan) string {
	text := "deployed " + deploy.Title(p.New)
	if p.Staged {
		text = "staged " + deploy.Title(p.New) + ", which becomes the default when the system shuts down"
	}
	if p.Etc != nil {
		modified, removed, added := p.Etc.Counts()
		text += fmt.Sprintf("; changes of /etc taken over: %d modified, %d removed, %d added", modified, removed, added)
	}
	return text
}
