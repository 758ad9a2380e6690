package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// verifier asks the signature policy of the running system about images, of each only once. It is a [deploy.Verifier].
type verifier struct {
	flags   *verifyFlags
	given   bool // the policy was named on the command line: it must exist
	policy  *signature.Policy
	loaded  bool
	checked map[signature.Image]*deploy.Verdict
}

func newVerifier(cmd *cobra.Command, f *verifyFlags) *verifier {
	return &verifier{flags: f, given: cmd.Flags().Changed("signature-policy"), checked: make(map[signature.Image]*deploy.Verdict)}
}

// load returns the policy, nil if there is none.
func (v *verifier) load() (*signature.Policy, error) {
	if v.loaded {
		return v.policy, nil
	}
	p, err := signature.LoadPolicy(v.flags.policy)
	if errors.Is(err, fs.ErrNotExist) && !v.given {
		p, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	v.policy, v.loaded = p, true
	return p, nil
}

// Verify implements [deploy.Verifier].
func (v *verifier) Verify(ctx context.Context, name string, manifest, index digest.Digest, known bool) (*deploy.Verdict, error) {
	policy, err := v.load()
	if err != nil {
		return nil, err
	}
	switch {
	case known && policy == nil:
		return nil, fmt.Errorf("%w: ostree-image-signed: demands a signature policy, and there is no %s", deploy.ErrRefused, v.flags.policy)
	case known && policy.AcceptsUnknown():
		return nil, fmt.Errorf("%w: ostree-image-signed: demands a signature policy that does not accept everything by default, as %s does",
			deploy.ErrRefused, v.flags.policy)
	case policy == nil:
		return nil, nil
	}
	ref, err := signature.ParseName(name)
	if err != nil {
		return nil, err
	}
	img := signature.Image{Name: ref, Digest: manifest, Index: index}
	if done := v.checked[img]; done != nil {
		return done, nil
	}
	src, err := v.flags.source()
	if err != nil {
		return nil, err
	}
	found, err := signature.Verify(ctx, policy, img, src)
	if err != nil {
		return nil, err
	}
	if err := found.Err(); err != nil {
		return nil, err
	}
	v.checked[img] = newVerdict(found)
	return v.checked[img], nil
}

func newVerdict(v *signature.Verdict) *deploy.Verdict {
	d := &deploy.Verdict{Rule: v.Scope, Policy: v.Policy, Time: time.Now()}
	for _, r := range v.Results {
		if by := r.By; by != nil {
			d.Signers = append(d.Signers, deploy.Signer{Key: by.Key, Signature: by.Form.String() + " " + by.Origin, Identity: by.Identity})
		}
	}
	return d
}

// isRefusal reports whether an error is that of an image without a signature that is demanded of it.
func isRefusal(err error) bool {
	return errors.Is(err, deploy.ErrRefused) || errors.As(err, new(*signature.RefusedError))
}

// refused has the running system remember an image that was refused, and returns err.
func refused(s *deploy.System, st *sysroot.State, f *deployFlags, image string, manifest digest.Digest, err error) error {
	if f.dryRun || !isRefusal(err) {
		return err
	}
	stateroot, serr := s.Stateroot(st, f.stateroot)
	if serr == nil {
		serr = s.Refuse(deploy.Refusal{Stateroot: stateroot, Image: image, Digest: manifest, Reason: err.Error()})
	}
	return errors.Join(err, serr)
}
