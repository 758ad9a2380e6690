package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// ErrConflict is the error of a plan with conflicts.
var ErrConflict = errors.New("/etc cannot be merged")

// Lookup returns the mode of a path below the new etc's defaults; only the type counts. If nothing exists there, the
// error unwraps to fs.ErrNotExist. The directories above the path exist.
type Lookup func(name string) (mode uint32, err error)

// Conflict is a path at which a change cannot be made in the new tree.
type Conflict struct {
	Path   string
	Reason string
}

// Plan is what a merge will do.
type Plan struct {
	Changes   []Change   // sorted by path
	Conflicts []Conflict // sorted by path
}

// NewPlan compares pristine and current as [Diff] does, and finds the conflicts of these changes with the new defaults:
// if one has a directory where the other has something else, neither is right. It writes nothing.
func NewPlan(ctx context.Context, pristine, current *atfs.Dir, fresh Lookup) (*Plan, error) {
	changes, err := Diff(ctx, pristine, current)
	if err != nil {
		return nil, err
	}
	p := &Plan{Changes: changes}
	types := typesOf{fresh: fresh, seen: make(map[string]uint32)}
	for _, c := range changes {
		if c.Kind == Removed || c.Path == "." {
			continue
		}
		conflict, err := types.conflict(c)
		if err != nil {
			return nil, fmt.Errorf("compare /etc with the new defaults: %w", err)
		}
		if conflict != nil {
			p.Conflicts = append(p.Conflicts, *conflict)
		}
	}
	slices.SortFunc(p.Conflicts, func(a, b Conflict) int { return strings.Compare(a.Path, b.Path) })
	return p, nil
}

// typesOf caches the types in the new defaults, 0 for nothing: many changes share their parents.
type typesOf struct {
	fresh Lookup
	seen  map[string]uint32
}

// reported stands for the type of a known conflict: nothing below it is reported.
const reported = ^uint32(0)

func (t typesOf) at(name string) (uint32, error) {
	if typ, ok := t.seen[name]; ok {
		return typ, nil
	}
	mode, err := t.fresh(name)
	if err := atfs.IgnoreNotExist(err); err != nil {
		return 0, err
	}
	if err != nil {
		mode = 0
	}
	t.seen[name] = mode & unix.S_IFMT
	return t.seen[name], nil
}

func (t typesOf) conflict(c Change) (*Conflict, error) {
	for i, r := range c.Path {
		if r != '/' {
			continue
		}
		above := c.Path[:i]
		typ, err := t.at(above)
		switch {
		case err != nil:
			return nil, err
		case typ == 0, typ == reported:
			return nil, nil
		case typ != unix.S_IFDIR:
			t.seen[above] = reported
			return conflictAt(above, "a directory with changes in it", typ), nil
		}
	}
	typ, err := t.at(c.Path)
	if err != nil || typ == 0 || (typ == unix.S_IFDIR) == c.Dir {
		return nil, err
	}
	t.seen[c.Path] = reported
	here := "not a directory"
	if c.Dir {
		here = "a directory"
	}
	return conflictAt(c.Path, here, typ), nil
}

func conflictAt(name, here string, typ uint32) *Conflict {
	return &Conflict{Path: name, Reason: here + ", but " + typeName(typ) + " in the new tree"}
}

func typeName(typ uint32) string {
	switch typ {
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFLNK:
		return "a symbolic link"
	}
	return "a special file"
}

// Err returns an error that names all conflicts, on one line, and unwraps to [ErrConflict]; nil if there are none.
func (p *Plan) Err() error {
	if len(p.Conflicts) == 0 {
		return nil
	}
	var texts []string
	for _, c := range p.Conflicts {
		texts = append(texts, fmt.Sprintf("%q is %s", path.Join("/etc", c.Path), c.Reason))
	}
	return fmt.Errorf("%w: %s", ErrConflict, strings.Join(texts, "; "))
}

// Counts returns the number of changes of each kind.
func (p *Plan) Counts() (modified, removed, added int) {
	for _, c := range p.Changes {
		switch c.Kind {
		case Modified:
			modified++
		case Removed:
			removed++
		case Added:
			added++
		}
	}
	return modified, removed, added
}
