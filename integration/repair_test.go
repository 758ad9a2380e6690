package integration

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// TestRepair damages the store under running containers and repairs it with fsck --repair from containerd's blobs,
// while another image is pulled. It flips one bit in each of 100 random objects and removes 20 others. fsck names each
// of them, and the images that use it. Afterwards every file is as the containers saw it before.
func TestRepair(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.ParallelUnpacks = 3 })
	fulls := map[string]string{"layers:1": "", "odd:1": "", "app:1": ""}
	before := make(map[string]string)
	ids := make(map[string]string)
	for ref := range fulls {
		fulls[ref] = e.pull(defaultNS, ref)
		ids[ref] = containerID()
		e.must(e.StartContainer(t.Context(), defaultNS, fulls[ref], ids[ref], "/bin/sleep", "1000"))
		before[ref] = e.exec(defaultNS, ids[ref], listScript)
	}
	e.prune()

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	damaged := e.damage(rand.New(rand.NewPCG(seed, 0)))
	r := e.fsckReport(12)
	for _, name := range damaged {
		i := slices.IndexFunc(r.Problems, func(p fsckProblem) bool { return p.Kind == "object" && p.Name == name })
		if i < 0 || len(r.Problems[i].Images) == 0 {
			t.Errorf("fsck does not name %s with the images that use it", name)
		}
	}
	other := push(t, "base:2")
	pulled := make(chan error, 1)
	go func() { pulled <- e.Pull(t.Context(), "other", other) }()
	r = e.fsckReport(0, "--repair", "--deep")
	// If the pull needs a removed object, it may store it first.
	if len(r.Repaired) < flipped || r.Deep.Proved == 0 {
		t.Errorf("fsck --repair --deep: got %d things repaired, want %d or more; %d layers proved", len(r.Repaired), flipped, r.Deep.Proved)
	}
	e.must(<-pulled)
	e.fsck()
	for ref, full := range fulls {
		e.compare(ref, e.view(defaultNS, full))
		was, is := lines(before[ref]), lines(e.exec(defaultNS, ids[ref], listScript))
		if got, want := minus(is, was), minus(was, is); len(got) > 0 || len(want) > 0 {
			t.Errorf("%s: the container that ran meanwhile sees\n%q\nwant\n%q", ref, got, want)
		}
	}
	e.compare("base:2", e.view("other", other))
}

// listScript prints a checksum and the attributes of each file that a container sees.
const listScript = `find / -xdev -type f ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*' -exec sha256sum {} +; ` +
	`find / -xdev ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*' -exec stat -c '%n %f %u:%g %s %Y' {} +`

// lines returns the set of lines of a text.
func lines(text string) map[string]bool {
	set := make(map[string]bool)
	for line := range strings.Lines(text) {
		set[strings.TrimSuffix(line, "\n")] = true
	}
	return set
}

// minus returns the lines of a that b lacks.
func minus(a, b map[string]bool) []string {
	a = maps.Clone(a)
	maps.DeleteFunc(a, func(line string, _ bool) bool { return b[line] })
	return slices.Sorted(maps.Keys(a))
}

// prune runs the command that removes what no snapshot needs.
func (e *env) prune() {
	e.t.Helper()
	_, err := e.Run(e.t.Context(), daemonBinary(e.t), "prune", "--root", e.Root, "--daemon-address", e.Daemon)
	e.must(err)
}

// fsckProblem and fsckReport are the tested parts of "fsck --json".
type fsckProblem struct {
	Kind, Name string
	Images     []string
}

type fsckReport struct {
	Problems, Repaired []fsckProblem
	Deep               struct {
		Proved int `json:"proved_layers"`
	}
}

// fsckReport runs our fsck, which must exit with a status.
func (e *env) fsckReport(status int, flags ...string) fsckReport {
	e.t.Helper()
	out, err := e.ourFsck(append(flags, "--json")...)
	if exitStatus(err) != status {
		e.t.Fatalf("fsck %v: %v, want exit status %d\n%.2000s", flags, err, status, out)
	}
	var r fsckReport
	e.must(json.Unmarshal([]byte(out), &r))
	return r
}

// ourFsck runs our fsck beside the daemon.
func (e *env) ourFsck(flags ...string) (string, error) {
	args := []string{"fsck", "--root", e.Root, "--daemon-address", e.Daemon, "--address", e.Containerd}
	return e.Run(context.WithoutCancel(e.t.Context()), daemonBinary(e.t), append(args, flags...)...)
}

// exitStatus returns the exit status of a program: 0 if it succeeded, -1 if it did not exit by itself.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// flipped is the number of objects that damage changes. It removes others.
const flipped = 100

// damage flips a bit in each of 100 random content objects, like a failing disk, removes 20 others, and returns their
// names.
func (e *env) damage(rnd *rand.Rand) (names []string) {
	e.t.Helper()
	objects := filepath.Join(e.Root, "repo/objects")
	found, err := filepath.Glob(objects + "/*/*.file")
	e.must(err)
	rnd.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	for i, name := range found[:flipped+20] {
		if i < flipped {
			e.must(flip(rnd, name))
		} else {
			e.must(os.Remove(name))
		}
		rel, err := filepath.Rel(objects, name)
		e.must(err)
		names = append(names, strings.Replace(rel, "/", "", 1))
	}
	return names
}

// flip flips a bit of a file and keeps its modification time.
func flip(rnd *rand.Rand, name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	st, err := os.Stat(name)
	if err != nil {
		return err
	}
	at := rnd.IntN(len(b))
	b[at] ^= 1 << rnd.IntN(8)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b[at:at+1], int64(at))
	return errors.Join(err, f.Close(), os.Chtimes(name, st.ModTime(), st.ModTime()))
}
