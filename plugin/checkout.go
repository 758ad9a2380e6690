package plugin

import (
	"errors"
	"fmt"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/erofs"
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

// choose finds out what containers run on, by trying it in a directory of the root's file system, and says why. Support is nil
// for hard links. That composefs is asked for and not possible is an error. No other process may do the same in dir.
func (c Checkout) choose(dir *atfs.Dir) (support *erofs.Support, why string, err error) {
	if c == CheckoutHardlink {
		return nil, "the configuration says so", nil
	}
	s, err := erofs.Probe(dir)
	switch {
	case err == nil:
		return &s, "the kernel has " + s.String(), nil
	case c == CheckoutAuto && errors.Is(err, erofs.ErrUnsupported):
		return nil, err.Error(), nil
	}
	return nil, "", fmt.Errorf("use composefs checkouts: %w", err)
}

// Chosen says in a word what choose chose.
func chosen(support *erofs.Support) Checkout {
	if support == nil {
		return CheckoutHardlink
	}
	return CheckoutComposefs
}

// ProbeCheckout says which checkouts a daemon with this configuration uses, and why. It tries it in a new directory below
// the root, and leaves nothing behind.
func (c *Config) ProbeCheckout(dir *atfs.Dir) (Checkout, string, error) {
	support, why, err := c.Checkout.choose(dir)
	return chosen(support), why, err
}

// chooseCheckout chooses for the daemon.
func (s *Store) chooseCheckout(c *Config) error {
	tmp, err := s.Root.OpenDir(tmpDir)
	if err != nil {
		return err
	}
	support, why, err := c.Checkout.choose(tmp)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	s.Composefs, s.why = support, why
	return nil
}
