package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// verifier asks the signature policy of the running system about images, of each only once. It is a [deploy.Verifier].
type verifier struct {
	flags   *verifyFlags
	note    func(format string, args ...any)
	given   bool // the policy was named on the command line: it must exist
	policy  *signature.Policy
	loaded  bool
	checked map[signature.Image]*deploy.Verdict
	kept    *keptSignatures                  // nil if images are not in containerd
	pending map[digest.Digest]signature.Kept // to be kept when containerd has the image
}

// keptSignatures are those in a namespace of containerd.
type keptSignatures struct {
	src      *imageSource
	readOnly bool
}

func (c *cli) newVerifier(cmd *cobra.Command, f *verifyFlags) *verifier {
	return &verifier{
		flags: f, note: c.note, given: cmd.Flags().Changed("signature-policy"),
		checked: make(map[signature.Image]*deploy.Verdict), pending: make(map[digest.Digest]signature.Kept),
	}
}

// keepIn has signatures kept with images in containerd, and read from there first. A dry run keeps none.
func (v *verifier) keepIn(src *imageSource, dryRun bool) { v.kept = &keptSignatures{src, dryRun} }

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
func (v *verifier) Verify(ctx context.Context, name string, manifest, target digest.Digest, known bool) (*deploy.Verdict, error) {
	policy, err := v.load()
	if err != nil {
		return nil, err
	}
	switch {
	case known && policy == nil:
		return nil, fmt.Errorf("%w: ostree-image-signed: demands a signature policy, and there is no %s", deploy.ErrRefused, signature.DefaultPolicyFile)
	case known && policy.AcceptsUnknown():
		return nil, fmt.Errorf("%w: ostree-image-signed: demands a signature policy that does not accept everything by default, as %s does",
			deploy.ErrRefused, policy.File)
	case policy == nil:
		return nil, nil
	}
	ref, err := signature.ParseName(name)
	if err != nil {
		return nil, err
	}
	img := signature.NewImage(ref, manifest, target)
	if v.checked[img] == nil {
		found, err := v.ask(ctx, policy, img)
		if err == nil {
			err = found.Err()
		}
		if err != nil {
			return nil, err
		}
		v.checked[img], v.pending[manifest] = newVerdict(found), found.Kept()
	}
	v.keep(ctx, manifest)
	return v.checked[img], nil
}

// check asks the policy about the image that a reference stands for.
func (v *verifier) check(ctx context.Context, ref deploy.Reference, manifest, target digest.Digest) error {
	_, err := v.Verify(ctx, ref.Name, manifest, target, ref.Demand == deploy.DemandPolicy)
	return err
}

// ask asks the policy about an image with the signatures that are kept with it. If it is not accepted by these, the
// registry's count.
func (v *verifier) ask(ctx context.Context, policy *signature.Policy, img signature.Image) (*signature.Verdict, error) {
	if v.kept != nil {
		found, err := v.kept.verify(ctx, policy, img)
		if found != nil && found.Accepted {
			return found, nil
		}
		if errors.As(err, new(*signature.PolicyError)) {
			return nil, err
		}
	}
	src, err := v.flags.source()
	if err != nil {
		return nil, err
	}
	return signature.Verify(ctx, policy, img, src)
}

// verify asks the policy with kept signatures. It returns nil if there are none.
func (k *keptSignatures) verify(ctx context.Context, policy *signature.Policy, img signature.Image) (*signature.Verdict, error) {
	doc, err := k.src.client.KeptSignatures(ctx, k.src.namespace, img.Digest)
	if err != nil || doc == nil {
		return nil, err
	}
	list, err := signature.ParseKept(doc)
	if err != nil {
		return nil, err
	}
	return signature.Verify(ctx, policy, img, list)
}

// keep keeps the signatures that an image was accepted by. Without the image in containerd, they are kept later. The image
// is accepted without that too: a failure is only noted.
func (v *verifier) keep(ctx context.Context, manifest digest.Digest) {
	list := v.pending[manifest]
	if v.kept == nil || v.kept.readOnly || len(list) == 0 {
		return
	}
	doc, err := list.Encode()
	if err == nil {
		err = v.kept.src.client.KeepSignatures(ctx, v.kept.src.namespace, manifest, doc)
	}
	if errdefs.IsNotFound(err) {
		return
	}
	delete(v.pending, manifest)
	if err != nil {
		v.note("signatures are not kept with the image: %v", err)
	}
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
