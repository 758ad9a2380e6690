package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// layersReport is the output of "layers --json".
type layersReport struct {
	Layers []layerRow `json:"layers"`
}

// layerRow is a layer of a layersReport.
type layerRow struct {
	ID      objectstore.Checksum `json:"id"`
	DiffID  digest.Digest        `json:"diff_id,omitempty"` // none for a layer made of a directory
	Entries int64                `json:"entries"`
	Size    int64                `json:"size_bytes"`
	// Snapshots is the number of snapshots, committed or not, that have the layer, without those on top of them.
	Snapshots int `json:"snapshots"`
	// Unique is the disk space that would be freed by removing only this layer.
	Unique int64 `json:"unique_bytes"`
}

func (c *cli) layersCommand() *cobra.Command {
	var f daemonFlags
	cmd := &cobra.Command{
		Use:   "layers",
		Short: "List the layers in the store",
		Long: `List the layers in the store, each with the number of its entries and bytes, the number of snapshots that have it, and
the disk space that would be freed by removing only this layer.` + exitHelp(exitPartly, exitNoRepo, exitLocked, exitCorrupt, exitInterrupted),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.listLayers(cmd.Context(), &f) },
	}
	c.jsonFlag(cmd)
	f.addDaemon(cmd)
	return cmd
}

func (c *cli) listLayers(ctx context.Context, f *daemonFlags) (err error) {
	s, err := c.openStore(f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	list, damage := c.layerRows(ctx, s)
	if list == nil && damage != nil {
		return damage
	}
	if c.json {
		err = c.writeJSON(layersReport{list})
	} else {
		rows := []string{"LAYER\tDIFF ID\tENTRIES\tSIZE\tSNAPSHOTS\tUNIQUE"}
		for _, l := range list {
			diffID := "-"
			if l.DiffID != "" {
				diffID = shortDigest(l.DiffID)
			}
			rows = append(rows, fmt.Sprintf("%.12s\t%s\t%d\t%s\t%d\t%s",
				l.ID, diffID, l.Entries, size(l.Size), l.Snapshots, size(l.Unique)))
		}
		err = c.table(rows...)
	}
	if damage != nil {
		err = errors.Join(err, withStatus(exitPartly, fmt.Errorf("list layers: %w", damage)))
	}
	return err
}

// layerRows returns the list. A list beside an error leaves out the damaged layers that the error names.
func (c *cli) layerRows(ctx context.Context, s *store) ([]layerRow, error) {
	p := c.newProgress("measuring files")
	layers, damage := s.LayerUsage(ctx, func(n int64) { p.update(n, 0) })
	p.stop()
	if layers == nil {
		return nil, damage
	}
	list := make([]layerRow, len(layers))
	for i, l := range layers {
		list[i] = layerRow{ID: l.ID, DiffID: l.DiffID, Entries: l.Entries, Size: l.Size, Snapshots: l.Snapshots, Unique: l.Unique}
	}
	return list, damage
}
