package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// Checkout says what containers run on.
type Checkout string

const (
	// CheckoutAuto is composefs where the kernel can, else hard links.
	CheckoutAuto Checkout = "auto"
	// CheckoutComposefs has one composefs image of all layers of a container's image.
	CheckoutComposefs Checkout = "composefs"
	// CheckoutHardlink has a directory of hard links for each layer.
	CheckoutHardlink Checkout = "hardlink"
)

// CheckoutFile is the name of the file below the root in which a daemon says what it chose, and why, for who looks at the store.
const CheckoutFile = "checkout"

// Verity says whether the kernel is to compare what containers read with digests.
type Verity string

const (
	// VerityOff does not have it.
	VerityOff Verity = "off"
	// VerityAuto has it where containers run on composefs and the file system has fs-verity.
	VerityAuto Verity = "auto"
	// VerityRequire refuses to start where VerityAuto would not have it.
	VerityRequire Verity = "require"
)

// choose finds out what containers run on, by trying it in a directory of the root's file system, and says why. Support is nil
// for hard links. That something is asked for and not possible is an error. No other process may do the same in dir.
func (c *Config) choose(dir *atfs.Dir) (support *composefsmount.Support, why string, err error) {
	support, why, err = c.Checkout.choose(dir)
	if err != nil || c.Verity == VerityOff {
		return support, why, err
	}
	if support == nil {
		if c.Verity == VerityRequire {
			return nil, "", fmt.Errorf("use fs-verity: %w", errors.New(why))
		}
		return nil, why, nil
	}
	verity, err := support.ProbeVerity(dir)
	switch {
	case err == nil:
		return &verity, "the kernel has " + verity.String(), nil
	case c.Verity == VerityAuto && errors.Is(err, composefsmount.ErrUnsupported):
		return support, why + "; no verity: " + oneLine(err), nil
	}
	return nil, "", fmt.Errorf("use fs-verity: %w", err)
}

func (c Checkout) choose(dir *atfs.Dir) (support *composefsmount.Support, why string, err error) {
	if c == CheckoutHardlink {
		return nil, "the configuration says so", nil
	}
	s, err := composefsmount.Probe(dir)
	switch {
	case err == nil:
		return &s, "the kernel has " + s.String(), nil
	case c == CheckoutAuto && errors.Is(err, composefsmount.ErrUnsupported):
		return nil, oneLine(err), nil
	}
	return nil, "", fmt.Errorf("use composefs checkouts: %w", err)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// chosen says in a word what choose chose.
func chosen(support *composefsmount.Support) Checkout {
	if support == nil {
		return CheckoutHardlink
	}
	return CheckoutComposefs
}

// ProbeCheckout says which checkouts a daemon with this configuration uses, and why. It tries it in a new directory below
// the root, and leaves nothing behind.
func (c *Config) ProbeCheckout(dir *atfs.Dir) (Checkout, string, error) {
	support, why, err := c.choose(dir)
	return chosen(support), why, err
}

// sayCheckout says what was chosen, to the log and to CheckoutFile.
func (s *Store) sayCheckout(ctx context.Context) {
	kind := chosen(s.Composefs)
	log := log.G(ctx).WithField("checkout", kind).WithField("because", s.why)
	log.Info("checkouts chosen")
	if err := s.Root.WriteFile(CheckoutFile, fmt.Appendf(nil, "%s: %s\n", kind, s.why), 0o600, false); err != nil {
		log.WithError(err).Warn("file that says so is not written")
	}
}

// chooseCheckout chooses for the daemon.
func (s *Store) chooseCheckout(c *Config) error {
	tmp, err := s.Root.OpenDir(layer.TmpDir)
	if err != nil {
		return err
	}
	support, why, err := c.choose(tmp)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	s.Composefs, s.why = support, why
	return nil
}

// setVerity has the repository give its objects fs-verity if what was chosen needs it. Otherwise it ends that in the root's own
// repository; what another one does is its owner's affair.
func (s *Store) setVerity(c *Config) error {
	on := s.Composefs != nil && s.Composefs.Verity
	if !on && c.Repo != "" {
		return nil
	}
	return s.Repo.SetVerity(on)
}
