package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// policyFlags are the flags of commands that ask a signature policy.
type policyFlags struct {
	policy string // file; "" for the system's
	places string // directory
}

// defaultPolicy is the end of the usage of --signature-policy.
const defaultPolicy = " (default " + signature.DefaultPolicyFile + ", else " + signature.VendorPolicyFile + ")"

func (f *policyFlags) addPolicy(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.policy, "signature-policy", "", "`FILE` with the policy, as containers-policy.json(5) describes"+defaultPolicy)
	fl.StringVar(&f.places, "registries.d", signature.DefaultPlacesDir, "`DIR` that says where signatures are, as containers-registries.d(5) describes")
}

// verifyFlags are the flags of commands that check an image of a registry.
type verifyFlags struct {
	policyFlags
	registryFlags
	authFile string // with credentials; "" for docker's, if it exists
}

// addVerify adds the flags.
func (f *verifyFlags) addVerify(cmd *cobra.Command) {
	f.addPolicy(cmd)
	f.addRegistry(cmd)
	cmd.Flags().StringVar(&f.authFile, "authfile", "", "`FILE` with credentials for registries, in docker's format (default that of docker)")
}

// readCredentials reads the file with credentials.
func (f *verifyFlags) readCredentials() (err error) {
	file := f.authFile
	if file == "" {
		file = containerd.DockerAuthFile()
	}
	f.Credentials, err = containerd.Credentials(file)
	if errors.Is(err, fs.ErrNotExist) && f.authFile == "" {
		return nil
	}
	return err
}

// source returns the registry's signatures.
func (f *verifyFlags) source() (*signature.Registry, error) {
	if err := f.readCredentials(); err != nil {
		return nil, err
	}
	places, err := signature.LoadPlaces(f.places)
	if err != nil {
		return nil, err
	}
	open := func(ctx context.Context, name reference.Named) (signature.Repository, error) {
		return f.Repository(ctx, name)
	}
	return &signature.Registry{Open: open, Config: places}, nil
}

// verify asks the policy about an image.
func (f *verifyFlags) verify(ctx context.Context, img signature.Image) (*signature.Verdict, error) {
	policy, err := signature.LoadPolicy(f.policy)
	if err != nil {
		return nil, err
	}
	src, err := f.source()
	if err != nil {
		return nil, err
	}
	return signature.Verify(ctx, policy, img, src)
}

// verdictReport is the output of "image verify --json".
type verdictReport struct {
	Name         string              `json:"name"`
	Digest       digest.Digest       `json:"digest"`
	Index        digest.Digest       `json:"index,omitempty"`
	Accepted     bool                `json:"accepted"`
	Policy       string              `json:"policy"`
	Rule         string              `json:"rule"`
	Requirements []requirementReport `json:"requirements"`
}

type requirementReport struct {
	Type     string             `json:"type"`
	Met      bool               `json:"met"`
	Accepted *acceptedSignature `json:"signature,omitempty"`
	Refused  []refusedSignature `json:"refused,omitempty"`
	Reason   string             `json:"reason,omitempty"`
}

type acceptedSignature struct {
	Form     string        `json:"form"`
	Origin   string        `json:"origin"`
	Digest   digest.Digest `json:"digest"`
	Key      string        `json:"key"`
	Identity string        `json:"identity,omitempty"`
	Logged   bool          `json:"logged"`
}

type refusedSignature struct {
	Form   string `json:"form"`
	Origin string `json:"origin"`
	Reason string `json:"reason"`
}

func newVerdictReport(v *signature.Verdict) verdictReport {
	r := verdictReport{
		Name: v.Image.Name.String(), Digest: v.Image.Digest, Index: v.Image.Index, Accepted: v.Accepted, Policy: v.Policy, Rule: v.Scope,
	}
	for _, res := range v.Results {
		req := requirementReport{Type: res.Requirement, Met: res.Met, Reason: res.Reason}
		if by := res.By; by != nil {
			req.Accepted = &acceptedSignature{
				Form: by.Form.String(), Origin: by.Origin, Digest: by.Digest, Key: by.Key, Identity: by.Identity, Logged: by.Logged,
			}
		}
		for _, t := range res.Tried {
			req.Refused = append(req.Refused, refusedSignature{Form: t.Form.String(), Origin: t.Origin, Reason: t.Err.Error()})
		}
		r.Requirements = append(r.Requirements, req)
	}
	return r
}

func (r verdictReport) rows() []string {
	verdict := "refused"
	if r.Accepted {
		verdict = "accepted"
	}
	rows := []string{"image\t" + r.Name, "digest\t" + r.Digest.String()}
	if r.Index != "" {
		rows = append(rows, "index\t"+r.Index.String())
	}
	rows = append(rows, "verdict\t"+verdict, "rule\t"+r.Rule+" of "+r.Policy)
	for i, req := range r.Requirements {
		text := req.Type + ": met"
		if !req.Met {
			text = req.Type + ": " + req.Reason
		}
		rows = append(rows, "requirement "+strconv.Itoa(i+1)+"\t"+text)
		if s := req.Accepted; s != nil {
			text := s.Form + " " + s.Origin
			if s.Logged {
				text += ", in a transparency log"
			}
			rows = append(rows, "  signature\t"+text, "  of\t"+s.Digest.String(), "  key\t"+s.Key)
			if s.Identity != "" {
				rows = append(rows, "  identity\t"+s.Identity)
			}
		}
		for _, s := range req.Refused {
			rows = append(rows, "  not by\t"+s.Form+" "+s.Origin+": "+s.Reason)
		}
	}
	return rows
}

// imageVerifyFlags are the flags of "image verify".
type imageVerifyFlags struct {
	verifyFlags
	imageFlags
	keep bool
}

func (c *cli) imageVerifyCommand() *cobra.Command {
	var f imageVerifyFlags
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Check an image's signatures by a policy",
		Long: `Ask the registry which image IMAGE is now, and the signature policy whether it may be used. Print the rule that decides,
for each of its requirements the signature and the key that meet it, and why others do not. Nothing is pulled.

With --keep, the signatures that the image is accepted by are kept with it in containerd, which has to have pulled it: "deploy"
and "install" then need no registry to check them.

IMAGE is a name with a tag or digest. The signature of an index counts for each image in it.` + exitHelp(exitRefused, exitInterrupted),
		Args: oneArg("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error { return c.imageVerify(cmd.Context(), &f, args[0]) },
	}
	c.jsonFlag(cmd)
	cmd.Flags().BoolVar(&f.keep, "keep", false, "keep the signatures with the image in containerd")
	f.addVerify(cmd)
	f.addImage(cmd)
	return cmd
}

func (c *cli) imageVerify(ctx context.Context, f *imageVerifyFlags, image string) error {
	name, err := signature.ParseName(image)
	if err != nil {
		return withStatus(exitUsage, err)
	}
	if err := f.readCredentials(); err != nil {
		return err
	}
	manifest, target, err := f.Target(ctx, name.String())
	if err != nil {
		return err
	}
	v, err := f.verify(ctx, signature.NewImage(name, manifest, target))
	if err != nil {
		return err
	}
	if c.json {
		err = c.writeJSON(newVerdictReport(v))
	} else {
		err = c.table(newVerdictReport(v).rows()...)
	}
	if err != nil {
		return err
	}
	if err := v.Err(); err != nil {
		return fmt.Errorf("verify image: %w", err)
	}
	if f.keep {
		return c.keepSignatures(ctx, &f.imageFlags, v)
	}
	return nil
}

// keepSignatures keeps the signatures that an image was accepted by with it in containerd.
func (c *cli) keepSignatures(ctx context.Context, f *imageFlags, v *signature.Verdict) error {
	doc, err := v.Kept().Encode()
	if err != nil {
		return err
	}
	cfg, err := c.loadConfig()
	if err != nil {
		return err
	}
	client, err := f.dial(cfg)
	if err != nil {
		return err
	}
	return errors.Join(client.KeepSignatures(ctx, f.namespace, v.Image.Digest, doc), client.Close())
}
