package sysroot

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

// Limits of readers. Writers stay within them: a file that is too long for its reader would make the sysroot
// unreadable.
const (
	maxEntryLen   = bls.MaxLen     // of a boot loader entry
	maxOriginLen  = keyfile.MaxLen // of an origin file
	maxStagedLen  = 1 << 20        // of the staged file
	maxFailureLen = 1 << 20        // of the error of an attempt to finalize
	maxEntries    = 1000           // in boot/loader.B

	// originReserve is the part of maxOriginLen that a new origin file leaves to later changes, such as pinning.
	originReserve = 4 << 10
)

// checkLimits refuses a new deployment whose files could not be read again, or whose kernel arguments the kernel would
// cut off.
func (s *Sysroot) checkLimits(p *Plan) error {
	d, n := p.New, len(p.Deployments)+1 // a staged one is not among them yet
	if n > maxEntries {
		return fmt.Errorf("%w: there would be more than %d deployments", ErrInvalid, maxEntries)
	}
	if d.Origin != nil {
		if size := len(d.Origin.Marshal()); size > maxOriginLen-originReserve {
			return fmt.Errorf("%w: its origin file would have %d bytes, more than %d", ErrInvalid, size, maxOriginLen-originReserve)
		}
	}
	arg := bls.OSTreeArg{Stateroot: d.Stateroot, BootCsum: d.BootCsum, BootSerial: n}
	e, err := s.makeEntry(p, d, p.kernel.bootNames, arg, n, true)
	if err != nil {
		return err
	}
	_, err = marshalEntry(e, arg, true)
	return err
}

// marshalEntry returns the text of an entry that boots what arg names, after it has read it again. A fresh entry must
// also fit the kernel and come back as it is; of others, which have booted, only what leads to the deployment must.
func marshalEntry(e *bls.Entry, arg bls.OSTreeArg, fresh bool) ([]byte, error) {
	text := e.Marshal()
	if len(text) > maxEntryLen {
		return nil, fmt.Errorf("%w: its boot loader entry would have %d bytes, more than %d", ErrInvalid, len(text), maxEntryLen)
	}
	back, err := bls.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: read its boot loader entry again: %w", ErrInvalid, err)
	}
	args := kargs.Parse(back.Options)
	value, _ := args.Value("ostree")
	if got, err := bls.ParseOSTreeArg(value); err != nil || got != arg {
		return nil, fmt.Errorf("%w: its boot loader entry would lead to %.300q, not to %q", ErrInvalid, value, arg)
	}
	if !fresh {
		return text, nil
	}
	if !slices.Equal(args, kargs.Parse(e.Options)) || back.Linux != e.Linux || !slices.Equal(back.Initrd, e.Initrd) {
		return nil, fmt.Errorf("%w: a boot loader entry cannot hold its kernel arguments %.300q or the names of its kernel's files",
			ErrInvalid, e.Options)
	}
	if size, limit := commandLineLen(e), kargs.MaxLen(runtime.GOARCH); size > limit {
		return nil, fmt.Errorf("%w: its kernel arguments have %d bytes, with those of the boot loader %d: the kernel reads only %d",
			ErrInvalid, len(e.Options), size, limit)
	}
	return text, nil
}

// commandLineLen returns the length of the command line that a kernel gets. Boot loaders put an argument of their own
// before those of the entry: GRUB the kernel's name, systemd-boot those of the initramfs images.
func commandLineLen(e *bls.Entry) int {
	grub := len("BOOT_IMAGE=(hd0,gpt99) ") + len(e.Linux)
	sdboot := 0
	for _, name := range e.Initrd {
		sdboot += len("initrd= ") + len(name)
	}
	return max(grub, sdboot) + len(e.Options)
}

// bounded cuts a text off after a number of bytes, at the start of a character.
func bounded(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "")
}
