package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// deploymentAt returns a deployment with an origin of an image.
func deploymentAt(serial int, image string) *sysroot.Deployment {
	return &sysroot.Deployment{Stateroot: "os", Serial: serial, Origin: deploy.NewOrigin(nil, deploy.Reference{Name: image})}
}

func TestStates(t *testing.T) {
	a, b, c := deploymentAt(0, "a"), deploymentAt(1, "b"), deploymentAt(2, "c")
	counted, broken := deploymentAt(3, "counted"), deploymentAt(4, "broken")
	counted.Tries, broken.Tries = &bls.Tries{Left: 2, Done: 1}, &bls.Tries{Done: 3}
	pinned := deploymentAt(5, "pinned")
	pinned.Origin.Set("libostree-transient", "pinned", "true")
	list := func(d ...*sysroot.Deployment) []*sysroot.Deployment { return d }
	for _, tt := range []struct {
		name string
		st   sysroot.State
		want string // states of each, in the order of the indexes
	}{
		{"offline", sysroot.State{Deployments: list(a, b)}, "default; rollback"},
		{"booted", sysroot.State{Deployments: list(a, b), Booted: a}, "booted; rollback"},
		{"pending", sysroot.State{Deployments: list(a, b, c), Booted: b}, "pending; booted; rollback"},
		{"staged", sysroot.State{Deployments: list(a, pinned), Booted: a, Staged: &sysroot.Staged{Deployment: c}}, "staged; booted; rollback,pinned"},
		{"locked", sysroot.State{Deployments: list(a), Booted: a, Staged: &sysroot.Staged{Deployment: c, Locked: true}}, "staged,locked; booted"},
		{"counted", sysroot.State{Deployments: list(counted, a), Booted: a}, "pending,unproven; booted"},
		{"fallen back", sysroot.State{Deployments: list(broken, a), Booted: a}, "pending,failed; booted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, d := range tt.st.All() {
				row := newDeploymentRow(&tt.st, d)
				got = append(got, strings.Join(row.states(), ","))
			}
			if s := strings.Join(got, "; "); s != tt.want {
				t.Errorf("states are %q, want %q", s, tt.want)
			}
		})
	}
}

func TestFellBack(t *testing.T) {
	good, broken := deploymentAt(0, "good"), deploymentAt(1, "broken")
	broken.Tries = &bls.Tries{Done: 3}
	st := &sysroot.State{Deployments: []*sysroot.Deployment{broken, good}, Booted: good}
	if got, want := fellBack(st), "os 000000000000.1 broken failed to boot 3 times, and the boot loader fell back to os 000000000000.0 good"; got != want {
		t.Errorf("fellBack() = %q, want %q", got, want)
	}
	broken.Tries = &bls.Tries{Left: 1, Done: 2}
	if got := fellBack(st); got != "" {
		t.Errorf("fellBack() with tries left = %q", got)
	}
	st.Booted = nil
	broken.Tries = &bls.Tries{Done: 3}
	if got := fellBack(st); got != "" {
		t.Errorf("fellBack() of a system that does not run = %q", got)
	}
}

// TestDamagedRefusal: a record of a refusal that cannot be read is a note.
func TestDamagedRefusal(t *testing.T) {
	var r statusReport
	r.addRefusal(nil, errors.New("damaged"))
	if r.Refused != nil || len(r.Notes) != 1 || !strings.HasSuffix(r.Notes[0], "not known: damaged") {
		t.Errorf("got %+v", r)
	}
}

// A system without its commits, or one that only ostree has changed, leaves gaps in the table and none in the document.
func TestPrintStatus(t *testing.T) {
	now := time.Unix(1700000000, 0)
	r := &statusReport{Deployments: []deploymentRow{
		{
			deploymentName: deploymentName{Stateroot: "os", Image: "example.org/os:2", Version: "2", Kargs: []string{"rw", "quiet"}},
			Default:        true, Digest: "sha256:2", Time: new(now.Add(-3 * time.Hour)), Unique: new(int64(1 << 20)), Shared: new(int64(0)),
			Tries: &bootTries{Left: 2, Done: 1}, Reference: "ostree-image-signed:docker://example.org/os:2",
			Signature: &deploy.Verdict{Rule: "example.org", Policy: "/p", Time: now, Signers: []deploy.Signer{{Key: "k", Signature: "s"}}},
		},
		{Index: 1, deploymentName: deploymentName{Stateroot: "os", Refspec: "remote:os\x1b[2J"}, Time: new(now.Add(time.Hour))},
	}, Notes: []string{"a note"}}
	var stdout, stderr bytes.Buffer
	c := &cli{stdout: &stdout, stderr: &stderr}
	if err := c.printStatus(r, true, now); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"INDEX  STATE             STATEROOT  IMAGE             VERSION  AGE ",
		"0      default,unproven  os         example.org/os:2  2        3 hours ",
		"1      -                 os         remote:os?[2J     -        1 hour in the future ",
		"\n  boots   1 failed, 2 left to prove itself\n",
		"\n  digest  sha256:2\n  origin  ostree-image-signed:docker://example.org/os:2\n  signed  checked 20",
		"\n  rule    example.org of /p\n  key     k, s\n  time    ",
		"\n  signed  not checked\n",
	} {
		if !strings.Contains(stdout.String(), line) {
			t.Errorf("output lacks %q:\n%s", line, stdout.String())
		}
	}
	if got := stderr.String(); got != "ostree-snapshotter: a note\n" {
		t.Errorf("stderr is %q", got)
	}
}
