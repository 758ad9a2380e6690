package plugin

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
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

// checkoutFile, below the root, records the checkouts that the daemon chose and why: one line, see [Chosen.String].
const checkoutFile = "checkout"

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

// Chosen is the choice of a daemon.
type Chosen struct {
	Checkout Checkout // CheckoutComposefs or CheckoutHardlink
	Why      string   // one line
}

// String returns the line that the root's file has.
func (c Chosen) String() string { return string(c.Checkout) + ": " + c.Why }

// parseChosen is the inverse of String.
func parseChosen(line string) (Chosen, error) {
	kind, why, ok := strings.Cut(strings.TrimSpace(line), ": ")
	c := Chosen{Checkout(kind), why}
	if !ok || c.Checkout != CheckoutComposefs && c.Checkout != CheckoutHardlink {
		return Chosen{}, fmt.Errorf("no choice of checkouts: %q", line)
	}
	return c, nil
}

// ReadCheckout returns the choice of the daemon that was started last on a root. If none ever was, the error is an
// fs.ErrNotExist.
func ReadCheckout(root *atfs.Dir) (Chosen, error) {
	b, err := root.ReadFile(checkoutFile, 4096)
	if err != nil {
		return Chosen{}, err
	}
	c, err := parseChosen(string(b))
	if err != nil {
		return c, fmt.Errorf("read %s: %w", path.Join(root.Path(), checkoutFile), err)
	}
	return c, nil
}

// chosen returns the store's choice.
func (s *Store) chosen() Chosen { return Chosen{chosen(s.Composefs), s.why} }

// recordCheckout logs the choice and writes it to the root's file.
func (s *Store) recordCheckout(ctx context.Context) {
	c := s.chosen()
	logger := log.G(ctx).WithField("checkout", c.Checkout).WithField("because", c.Why)
	logger.Info("checkouts chosen")
	if err := s.Root.WriteFile(checkoutFile, []byte(c.String()+"\n"), 0o600, false); err != nil {
		logger.WithError(err).Warn("file that says so is not written")
	}
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
