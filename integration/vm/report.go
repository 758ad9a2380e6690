package vm

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// A Command is a command line for bash in the guest. Its name must not contain spaces.
type Command struct {
	Name string
	Line string
	// Fails allows the command to fail. After any other failure, the remaining commands are skipped.
	Fails bool
}

// script returns the script that runs the commands: calls of step in guest.sh.
func script(commands []Command) string {
	var b strings.Builder
	for _, c := range commands {
		step := fmt.Sprintf("step %s %s", c.Name, quote(c.Line))
		if c.Fails {
			step = "{ " + step + " || true; }"
		}
		b.WriteString(step + " &&\n")
	}
	return b.String() + "echo @all\n"
}

// quote quotes a word for the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// A Result is the result of a command.
type Result struct {
	Output string // both streams
	Status int
	Ended  float64 // seconds since the guest's kernel started
}

// A Report is the output of a guest in one run.
type Report struct {
	Results map[string]*Result // by the names of the commands that ran
	Console string             // file with the output of firmware, kernel and systemd
	Seconds float64            // from the start of qemu to its end

	processor float64 // seconds of processor time that qemu took

	began float64 // seconds from the start of the guest's kernel to the first command; 0: none ran
	order []string
	all   bool     // every command ran
	done  bool     // the guest is about to power off
	other []string // lines outside of commands
}

// read reads the second serial line to its end. It calls begin when the guest is up.
func (r *Report) read(in io.Reader, begin func()) error {
	s := bufio.NewScanner(in)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := strings.TrimRight(s.Text(), "\r")
		if err := r.line(line); err != nil {
			return fmt.Errorf("read output of the guest: line %q: %w", line, err)
		}
		if r.began > 0 {
			begin()
		}
	}
	return s.Err()
}

// line handles one line from guest.sh.
func (r *Report) line(line string) error {
	// The firmware writes to this serial line too, and need not end its last line.
	if _, rest, ok := strings.Cut(line, "@begin "); ok && r.began == 0 {
		_, err := fmt.Sscan(rest, &r.began)
		return err
	}
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "@end":
		var name string
		var res Result
		if _, err := fmt.Sscan(rest, &name, &res.Status, &res.Ended); err != nil {
			return err
		}
		res.Output = r.result(name).Output
		*r.result(name) = res
		r.order = append(r.order, name)
		return nil
	case "@all":
		r.all = true
		return nil
	case "@done":
		r.done = true
		return nil
	}
	if name, ok := strings.CutSuffix(word, ":"); ok {
		r.result(name).Output += rest + "\n"
		return nil
	}
	r.other = append(r.other, line)
	return nil
}

func (r *Report) result(name string) *Result {
	if r.Results == nil {
		r.Results = make(map[string]*Result)
	}
	if r.Results[name] == nil {
		r.Results[name] = &Result{Status: -1}
	}
	return r.Results[name]
}

// err returns the reason why the guest did not do everything.
func (r *Report) err() error {
	switch {
	case !r.all && len(r.order) > 0 && r.Results[r.order[len(r.order)-1]].Status != 0:
		name := r.order[len(r.order)-1]
		return fmt.Errorf("command %s: exit status %d\n%s", name, r.Results[name].Status, r.Results[name].Output)
	case !r.all || !r.done:
		return fmt.Errorf("the guest ended after the commands %q\n%s\n%s", r.order, strings.Join(r.other, "\n"), r.Tail(30))
	}
	return nil
}

// times describes the durations.
func (r *Report) times() string {
	text := fmt.Sprintf("%.0f s of processor time in %.0f s, of which %.0f until the first command", r.processor, r.Seconds, r.began)
	last := r.began
	for _, name := range r.order {
		if res := r.Results[name]; res.Ended-last >= 1 {
			text += fmt.Sprintf(", %.0f for %s", res.Ended-last, name)
		}
		last = r.Results[name].Ended
	}
	return text
}

// String returns everything that is known of the run: the output of the commands, and the end of the console.
func (r *Report) String() string {
	var b strings.Builder
	for _, name := range r.order {
		fmt.Fprintf(&b, "%s: exit status %d\n%s", name, r.Results[name].Status, r.Results[name].Output)
	}
	fmt.Fprintf(&b, "%s\nthe last of the console:\n%s", strings.Join(r.other, "\n"), r.Tail(60))
	return b.String()
}

// Count returns the number of console lines that contain a text.
func (r *Report) Count(text string) (int, error) {
	b, err := os.ReadFile(r.Console)
	if err != nil {
		return 0, fmt.Errorf("read console: %w", err)
	}
	n := 0
	for line := range bytes.Lines(b) {
		if bytes.Contains(line, []byte(text)) {
			n++
		}
	}
	return n, nil
}

// Tail returns the last lines of the console, or the reason why it cannot be read.
func (r *Report) Tail(lines int) string { return process.Tail(r.Console, lines) }
