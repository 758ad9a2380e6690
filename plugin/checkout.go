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

// Checkout is a way to give containers the files of their layers.
type Checkout string

const (
	// CheckoutAuto is composefs if the kernel can mount it, else hard links.
	CheckoutAuto Checkout = "auto"
	// CheckoutComposefs is one composefs image of all layers of a container's image.
	CheckoutComposefs Checkout = "composefs"
	// CheckoutHardlink is a directory of hard links for each layer.
	CheckoutHardlink Checkout = "hardlink"
)

// checkoutFile, below the root, records the daemon's choice of checkouts in one line, see [Chosen.String].
const checkoutFile = "checkout"

// Verity controls whether the kernel verifies files with fs-verity when containers read them.
type Verity string

const (
	// VerityOff never verifies files.
	VerityOff Verity = "off"
	// VerityAuto verifies files if containers run on composefs and the file system has fs-verity.
	VerityAuto Verity = "auto"
	// VerityRequire makes the daemon refuse to start where VerityAuto would not verify files.
	VerityRequire Verity = "require"
)

// choose tries checkouts in a directory on the root's file system and returns its choice with a reason in one line.
// Support is nil for hard links. A configured choice that is impossible is an error. No other process may call choose
// with dir meanwhile.
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

// chosen returns the kind of checkouts that a result of choose stands for.
func chosen(support *composefsmount.Support) Checkout {
	if support == nil {
		return CheckoutHardlink
	}
	return CheckoutComposefs
}

// Chosen is a daemon's choice of checkouts.
type Chosen struct {
	Checkout Checkout // CheckoutComposefs or CheckoutHardlink
	Why      string   // one line
}

// String returns the line in the root's file "checkout".
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

// ReadCheckout returns the choice of the last daemon that served a root. If there was none, the error is an
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

// recordCheckout logs the choice and writes it to checkoutFile.
func (s *Store) recordCheckout(ctx context.Context) {
	c := s.chosen()
	logger := log.G(ctx).WithField("checkout", c.Checkout).WithField("because", c.Why)
	logger.Info("checkouts chosen")
	if err := s.Root.WriteFile(checkoutFile, []byte(c.String()+"\n"), 0o600, false); err != nil {
		logger.WithError(err).Warn("choice of checkouts is not recorded")
	}
}

// setVerity makes the repository give new objects fs-verity if the chosen checkouts need it. Otherwise it turns
// fs-verity off in the root's own repository; other repositories keep their owner's setting.
func (s *Store) setVerity(c *Config) error {
	on := s.Composefs != nil && s.Composefs.Verity
	if !on && c.Repo != "" {
		return nil
	}
	return s.Repo.SetVerity(on)
}
