package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/commitsig"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

// A Verifier decides by the signature policy of the running system whether an image may be used.
type Verifier interface {
	// Verify returns what the policy says of an image, by the digest of its manifest and that which its name has: the same,
	// that of an index which names the manifest, or "" if it is not known. It returns nil if there is no policy, and an error
	// for an image that must not be used. With known set, the policy must not accept images that it does not know, and must
	// exist.
	Verify(ctx context.Context, name string, manifest, target digest.Digest, known bool) (*Verdict, error)
}

// A Verdict says why an image was accepted.
type Verdict struct {
	Rule    string    `json:"rule,omitempty"`    // of the policy
	Policy  string    `json:"policy,omitempty"`  // its file
	Remote  string    `json:"remote,omitempty"`  // ostree remote whose keys signed the commit inside
	Signers []Signer  `json:"signers,omitempty"` // none if the rule accepts an image without
	Time    time.Time `json:"time"`              // of the check
}

// A Signer is the key of a signature that was demanded and found.
type Signer struct {
	Key       string `json:"key"`
	Signature string `json:"signature"` // its form, and where it was
	Identity  string `json:"identity,omitempty"`
}

// verify asks the verifier, which may be nil, about an image.
func verify(ctx context.Context, v Verifier, ref Reference, img *Image) (*Verdict, error) {
	known := ref.Demand == DemandPolicy
	if v == nil {
		if known {
			return nil, as(ErrRefused, fmt.Errorf("image %s: %s demands a signature policy, and none is asked", img.Name, imageSigned))
		}
		return nil, nil
	}
	return v.Verify(ctx, img.Name, img.ManifestDigest, img.Target, known)
}

// commitKeys returns the keys of an ostree remote, those of the running system and of a repository, "" for none.
func commitKeys(repo, remote string) (*commitsig.Remote, error) {
	host := commitsig.Host{Root: os.DirFS("/")}
	if repo != "" {
		host.Repo = os.DirFS(repo)
	}
	r, err := commitsig.Load(host, remote)
	if err != nil {
		return nil, as(ErrRemote, err)
	}
	return r, nil
}

// repoOf returns the directory of the repository in a sysroot.
func repoOf(sysroot string) string { return path.Join(sysroot, "ostree/repo") }

// verifyCommit checks the signature of the commit inside an image. Layers above the commit are not part of it: they are
// refused unless another signature covers the whole image.
func verifyCommit(found OS, remote *commitsig.Remote, covered bool) (*commitsig.Verdict, error) {
	n, ok := found.(*nativeOS)
	if !ok {
		return nil, as(ErrRefused, fmt.Errorf("the keys of ostree remote %s sign ostree commits, and it has none inside", remote.Name))
	}
	v, err := remote.Verify(n.base.Object(), n.base.CommitMeta(), time.Now())
	if err != nil {
		return nil, as(ErrRefused, err)
	}
	if n.derived && !covered {
		return nil, as(ErrRefused, fmt.Errorf("the signature by ostree remote %s covers the ostree commit, and not the layers above it", remote.Name))
	}
	return v, nil
}

// add adds a verdict of the commit inside, if there is one. The verdict may be nil.
func (v *Verdict) add(c *commitsig.Verdict) *Verdict {
	if c == nil {
		return v
	}
	sum := Verdict{Time: time.Now()}
	if v != nil {
		sum = *v
	}
	sum.Remote, sum.Signers = c.Remote, slices.Clone(sum.Signers)
	for _, key := range c.Keys {
		sum.Signers = append(sum.Signers, Signer{Key: key, Signature: "ostree commit"})
	}
	return &sum
}

// originVerdict is the key of the verdict in an origin file.
const originVerdict = "signature-verdict"

// setVerdict records a verdict, nil for none.
func setVerdict(f *keyfile.File, v *Verdict) {
	text := ""
	if v != nil {
		v := *v
		v.Time = v.Time.UTC().Truncate(time.Second)
		b, err := json.Marshal(&v)
		if err != nil {
			panic(err) // it is made of strings
		}
		text = string(b)
	}
	setOwn(f, originVerdict, text)
}

// VerdictOf returns why the image of a deployment was accepted when it was deployed, nil if that is not known.
func VerdictOf(d *sysroot.Deployment) *Verdict {
	if d.Origin == nil {
		return nil
	}
	text, ok := d.Origin.Get(originGroup, originVerdict)
	v := new(Verdict)
	if !ok || json.Unmarshal([]byte(text), v) != nil {
		return nil
	}
	return v
}

// A Refusal is an image that the running system was to be upgraded to, and that was refused.
type Refusal struct {
	Stateroot string        `json:"stateroot"`
	Image     string        `json:"image"`
	Digest    digest.Digest `json:"digest,omitempty"`
	Reason    string        `json:"reason"`
	Time      time.Time     `json:"time"`
}

// The file in /run with the last refusal, and its limit.
const (
	refusalDir  = "ostree-snapshotter"
	refusalFile = refusalDir + "/refused"
	maxRefusal  = 64 << 10
	maxReason   = 4 << 10
)

// Refuse records that an image was refused for a stateroot, until another one is deployed there or the system boots.
// Only the running system keeps that.
func (s *System) Refuse(r Refusal) error {
	if s.run == nil || s.opts.ReadOnly {
		return nil
	}
	r.Time = time.Now().UTC().Truncate(time.Second)
	r.Reason = r.Reason[:min(len(r.Reason), maxReason)]
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := s.run.MkdirAll(refusalDir, 0o755); err != nil {
		return err
	}
	return s.run.WriteFile(refusalFile, b, 0o644, false)
}

// LastRefusal returns the image that was refused last, nil if there is none.
func (s *System) LastRefusal() (*Refusal, error) {
	if s.run == nil {
		return nil, nil
	}
	b, err := s.run.ReadFile(refusalFile, maxRefusal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(Refusal)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path.Join(runningRun, refusalFile), err)
	}
	return r, nil
}

// accept removes the record of a refusal for a stateroot. A deployment does not fail for a record that cannot be read: that is
// removed too, if possible.
func (s *System) accept(stateroot string) error {
	if s.opts.ReadOnly {
		return nil
	}
	r, err := s.LastRefusal()
	if err != nil {
		_ = s.run.Unlink(refusalFile)
		return nil //nolint:nilerr // status notes it
	}
	if r == nil || r.Stateroot != stateroot {
		return nil
	}
	return s.run.Unlink(refusalFile)
}
