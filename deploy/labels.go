package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Labels are the SELinux labels of an image's files, by the policy inside the image.
type Labels struct {
	Policy *selinux.Policy
	tree   *oscommit.Tree
}

// A FileLabel is the label of a file, and the line of the policy that decides about it.
type FileLabel struct {
	Path    string        // in the running system, without symbolic links to directories
	Type    fs.FileMode   // type bits of the file
	InImage bool          // whether the image has the file; if not, Type is assumed
	Label   string        // "" for none
	Line    selinux.Match // zero if no line fits
}

// ReadLabels reads the policy of an image. An image whose files need no labels is a selinux.ErrNoPolicy, and one whose
// policy cannot be used a selinux.ErrInvalid. The caller holds the shared lock of the layers' repository.
func ReadLabels(ctx context.Context, layers *layer.Store, img *Image) (*Labels, error) {
	l, err := readLabels(ctx, layers, img)
	if err != nil {
		return nil, fmt.Errorf("read labels of image %s: %w", img.Name, err)
	}
	return l, nil
}

func readLabels(ctx context.Context, layers *layer.Store, img *Image) (*Labels, error) {
	tree, err := flatTree(ctx, layers, img)
	if err != nil {
		return nil, err
	}
	policy, err := readPolicy(layers, tree)
	if err != nil {
		return nil, err
	}
	return &Labels{policy, tree}, nil
}

// policyDir is the directory of policies in a running system.
const policyDir = "etc/selinux"

func readPolicy(layers *layer.Store, tree *oscommit.Tree) (*selinux.Policy, error) {
	read := func(name string) ([]byte, error) { return tree.ReadFile(layers.Repo(), name, selinux.MaxFile) }
	return selinux.Load(read, policyDir)
}

// label gives the files of a tree the labels of the policy inside it, if there is one.
func label(layers *layer.Store, tree *oscommit.Tree, epoch oscommit.Epoch) error {
	policy, err := readPolicy(layers, tree)
	if errors.Is(err, selinux.ErrNoPolicy) {
		return nil
	}
	if err != nil {
		return err
	}
	// Like ostree: the kernel of the system would find no policy to load.
	compiled := path.Join(policyDir, policy.Type, "policy")
	if !slices.ContainsFunc(tree.ReadDir(compiled), func(name string) bool { return strings.HasPrefix(name, "policy.") }) {
		return fmt.Errorf("%w: there is no /%s/policy.<version>", selinux.ErrInvalid, compiled)
	}
	tree.Label(policy, epoch)
	return nil
}

// File returns the label of a file by its path in the running system. A path that the image does not have is taken for
// a directory if it ends with a slash, else for a regular file.
func (l *Labels) File(name string) FileLabel {
	at, n := l.tree.Lookup(name)
	f := FileLabel{Path: at}
	if n != nil {
		f.Type, f.InImage = selinux.TypeOf(n.Mode), true
	} else if strings.HasSuffix(name, "/") {
		f.Type = fs.ModeDir
	}
	f.Line, _ = l.Policy.Lookup(f.Path, f.Type)
	f.Label, _ = f.Line.Label()
	return f
}
