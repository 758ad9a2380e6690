package kargs

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestUpdate(t *testing.T) {
	for name, c := range map[string]struct {
		list, was, is, shared string
		want, wantShared      string
	}{
		"another image": {
			list: `root=UUID=x rw q="a b" console=tty0 console=ttyS0`, was: "rw console=tty0 quiet", is: "rw quiet nosmt console=ttyS0",
			want: `root=UUID=x rw q="a b" console=ttyS0 nosmt`, wantShared: "console=ttyS0",
		},
		"the machine's own": {list: "rw quiet", was: "", is: "quiet", want: "rw quiet", wantShared: "quiet"},
		"dropped, shared":   {list: "rw quiet", was: "quiet", is: "", shared: "quiet", want: "rw quiet"},
		"dropped":           {list: "rw quiet", was: "quiet", is: "", want: "rw"},
		"twice":             {list: "quiet rw quiet", was: "quiet", is: "", want: "rw quiet"},
		"twice in an image": {list: "rw", was: "", is: "quiet quiet", want: "rw quiet"},
		"quotes":            {list: `a="b"`, was: "a=b", is: "", want: ""},
		"deleted":           {list: "rw", was: "quiet", is: "quiet", want: "rw"},
		"deleted, and back": {list: "rw", was: "", is: "quiet", want: "rw quiet"},
		"another order":     {list: "a rw b c", was: "a b c", is: "c b a", want: "c rw b a"},
		"new in the middle": {list: "a rw b", was: "a b", is: "a new b", want: "a rw new b"},
		"order, shared":     {list: "a b", was: "a b", is: "b a", shared: "a", want: "a b", wantShared: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			list := Parse(c.list)
			got, shared := list.Update(Parse(c.was), Parse(c.is), Parse(c.shared))
			if got.String() != c.want || shared.String() != c.wantShared {
				t.Errorf("got %q, shared %q, want %q, %q", got, shared, c.want, c.wantShared)
			}
			if list.String() != c.list {
				t.Errorf("the list is now %q", list)
			}
		})
	}
}

// A machine is a model of who asks for kernel arguments, with what is recorded of it.
type machine struct {
	list, image, shared List

	operator, byImage map[string]bool
	order             []string // of the operator's
}

func (m *machine) edit(t *testing.T, e Edits) {
	t.Helper()
	after, err := e.Apply(m.list)
	if err != nil {
		t.Fatal(err)
	}
	m.shared = e.Shared(m.list, after, m.image, m.shared)
	m.list = after
	for _, a := range slices.Concat(e.Set, e.Append) {
		m.operator[a], m.byImage[a] = true, false
		m.order = append(slices.DeleteFunc(m.order, func(b string) bool { return b == a }), a)
	}
	for _, a := range e.Delete {
		m.operator[a], m.byImage[a] = false, false
		m.order = slices.DeleteFunc(m.order, func(b string) bool { return b == a })
	}
}

func (m *machine) upgrade(image List) {
	m.list, m.shared = m.list.Update(m.image, image, m.shared)
	for _, a := range m.image {
		if !slices.Contains(image, a) {
			m.byImage[a] = false
		}
	}
	for _, a := range image {
		if !slices.Contains(m.image, a) && !m.operator[a] {
			m.byImage[a] = true
		}
	}
	m.image = image
}

// Whatever images and operators ask for in turn: an argument is there as long as somebody asks for it, images' arguments
// have their order, and operators' have theirs.
func TestWhoAsks(t *testing.T) {
	all := List{"quiet", "rw", "console=tty0", "console=ttyS0", `x="a b"`, "nosmt"}
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 0))
		m := machine{operator: make(map[string]bool), byImage: make(map[string]bool)}
		var steps []string
		for range 30 {
			arg := all[r.IntN(len(all))]
			switch r.IntN(4) {
			case 0:
				image := slices.Clone(all)
				r.Shuffle(len(image), func(i, j int) { image[i], image[j] = image[j], image[i] })
				image = image[:r.IntN(len(image))]
				steps = append(steps, "image "+image.String())
				m.upgrade(image)
			case 1:
				if !slices.Contains(m.list, arg) {
					steps = append(steps, "append "+arg)
					m.edit(t, Edits{Append: []string{arg}})
				}
			case 2:
				if Key(arg) != "console" { // of which setting one deletes the other
					steps = append(steps, "set "+arg)
					m.edit(t, Edits{Set: []string{arg}})
				}
			case 3:
				if slices.Contains(m.list, arg) {
					steps = append(steps, "delete "+arg)
					m.edit(t, Edits{Delete: []string{arg}})
				}
			}
			var own, images List
			for _, a := range m.list {
				switch {
				case m.operator[a]:
					own = append(own, a)
				case m.byImage[a]:
					images = append(images, a)
				default:
					t.Fatalf("seed %d: after %q nobody asks for %s of %q", seed, steps, a, m.list)
				}
			}
			wantImages := slices.DeleteFunc(slices.Clone(m.image), func(a string) bool { return !m.byImage[a] })
			if !slices.Equal(own, m.order) || !slices.Equal(images, wantImages) {
				t.Fatalf("seed %d: after %q got %q, want the operator's %q, and the image's %q", seed, steps, m.list, m.order, wantImages)
			}
		}
	}
}
