package objectstore_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// TestErrorClasses checks that errors have the containerd classes that become the right gRPC codes.
func TestErrorClasses(t *testing.T) {
	about := func(err error) error {
		return fmt.Errorf("store: %w", &objectstore.ObjectError{Type: objectstore.TypeFile, Err: err})
	}
	_, parseErr := objectstore.ParseDirTree([]byte("nonsense"))
	for name, tc := range map[string]struct {
		err error
		is  func(error) bool
	}{
		"absent":  {about(objectstore.ErrNotExist), errdefs.IsNotFound},
		"corrupt": {about(objectstore.ErrCorrupt), errdefs.IsDataLoss},
		"parser":  {parseErr, errdefs.IsDataLoss},
		"locked":  {about(objectstore.ErrLocked), errdefs.IsUnavailable},
		"invalid": {about(objectstore.ErrInvalid), errdefs.IsInvalidArgument},
		"no repo": {fmt.Errorf("open: %w", objectstore.ErrNoRepo), errdefs.IsFailedPrecondition},
		"ref":     {&objectstore.RefError{Ref: "a", Err: objectstore.ErrNotExist}, errdefs.IsNotFound},
		"mode":    {fmt.Errorf("open: %w", &objectstore.UnsupportedModeError{Mode: "archive"}), errdefs.IsNotImplemented},
		"config":  {fmt.Errorf("open: %w", &objectstore.UnsupportedConfigError{}), errdefs.IsNotImplemented},
	} {
		if !tc.is(tc.err) {
			t.Errorf("%s: %v has another class", name, tc.err)
		}
	}
	if !errors.Is(about(objectstore.ErrNotExist), fs.ErrNotExist) {
		t.Error("an absent object is no fs.ErrNotExist")
	}
	if errors.Is(parseErr, objectstore.ErrInvalid) || errors.Is(about(objectstore.ErrNotExist), objectstore.ErrCorrupt) {
		t.Error("classes overlap")
	}
}
