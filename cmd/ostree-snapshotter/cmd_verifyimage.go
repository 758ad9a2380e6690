package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// maxDescriptor is the size of the largest descriptor that is read.
const maxDescriptor = 1 << 20

// verifyImageCommand is an image verifier of containerd. containerd's flags have one dash and long names, which only
// package flag parses.
func (c *cli) verifyImageCommand() *cobra.Command {
	var f verifyFlags
	var name, dgst, mediaType string
	fl := flag.NewFlagSet("verify-image", flag.ContinueOnError)
	fl.StringVar(&name, "name", "", "`NAME` of the image, as it is pulled")
	fl.StringVar(&dgst, "digest", "", "`DIGEST` that the name has")
	fl.StringVar(&mediaType, "stdin-media-type", "", "`TYPE` of the document at standard input")
	fl.StringVar(&f.policy, "signature-policy", "", "`FILE` with the policy"+defaultPolicy)
	fl.StringVar(&f.places, "registries.d", signature.DefaultPlacesDir, "`DIR` that says where signatures are")
	fl.StringVar(&f.HostsDir, "hosts-dir", "", "`DIR` that describes registries (default "+containerd.DefaultHostsDir+")")
	fl.StringVar(&f.authFile, "authfile", "", "`FILE` with credentials for registries, in docker's format")
	fl.BoolVar(&f.PlainHTTP, "plain-http", false, "ask registries without TLS")
	var usage strings.Builder
	fl.SetOutput(&usage)
	fl.PrintDefaults()
	fl.SetOutput(io.Discard)
	return &cobra.Command{
		Use:   "verify-image -name NAME -digest DIGEST -stdin-media-type TYPE",
		Short: "Check an image for containerd, before it is pulled",
		Long: `Check an image by the signature policy for containerd, which calls this program before it pulls an image: a file in the
directory "bin_dir" of containerd's plugin "bindir" has to be

  #!/bin/sh
  exec ostree-snapshotter verify-image "$@"

"config containerd --image-verifier DIR" prints the configuration. Standard input has the image's descriptor. Standard output
gets the reason. What is checked is the digest, so that a tag that moves meanwhile changes nothing. An index must be signed
itself.

Flags:
` + strings.TrimRight(usage.String(), "\n") + exitHelp(exitRefused, exitInterrupted),
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := fl.Parse(args)
			if errors.Is(err, flag.ErrHelp) {
				return cmd.Help()
			}
			if err == nil && fl.NArg() > 0 {
				err = fmt.Errorf("unknown argument %q", fl.Arg(0))
			}
			if err != nil {
				return withHint(withStatus(exitUsage, err), "\"%s --help\" lists the flags", cmd.CommandPath())
			}
			return c.verifyImage(cmd.Context(), &f, cmd.InOrStdin(), name, dgst, mediaType)
		},
	}
}

// verifyImage tells why an image is accepted or not, on standard output, where containerd reads it.
func (c *cli) verifyImage(ctx context.Context, f *verifyFlags, in io.Reader, name, dgst, mediaType string) error {
	v, err := f.verifyDescriptor(ctx, in, name, dgst, mediaType)
	if err != nil {
		return errors.Join(err, c.println("the image cannot be checked: "+strings.Join(errorLines(err), "; ")))
	}
	if err := v.Err(); err != nil {
		return errors.Join(err, c.println(strings.Join(errorLines(err), "; ")))
	}
	return c.println(fmt.Sprintf("accepted by rule %q of %s", v.Scope, v.Policy))
}

func (f *verifyFlags) verifyDescriptor(ctx context.Context, in io.Reader, name, dgst, mediaType string) (*signature.Verdict, error) {
	img, err := readImage(in, name, dgst, mediaType)
	if err != nil {
		return nil, err
	}
	return f.verify(ctx, img)
}

// readImage returns the image that containerd asks about.
func readImage(in io.Reader, name, dgst, mediaType string) (img signature.Image, err error) {
	if mediaType != ocispec.MediaTypeDescriptor {
		return img, usagef("standard input has the type %q, want %q", deploy.Printable(mediaType), ocispec.MediaTypeDescriptor)
	}
	if img.Name, err = signature.ParseName(name); err != nil {
		return img, withStatus(exitUsage, err)
	}
	b, err := io.ReadAll(io.LimitReader(in, maxDescriptor+1))
	if err == nil && len(b) > maxDescriptor {
		err = fmt.Errorf("it has more than %d bytes", maxDescriptor)
	}
	var desc ocispec.Descriptor
	if err == nil {
		err = json.Unmarshal(b, &desc)
	}
	if err != nil {
		return img, fmt.Errorf("read the descriptor: %w", err)
	}
	if img.Digest = desc.Digest; img.Digest != digest.Digest(dgst) {
		return img, usagef("the descriptor has the digest %q, the flag %q", img.Digest, dgst)
	}
	return img, nil
}
