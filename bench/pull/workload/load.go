package workload

import (
	"embed"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

//go:embed *.toml
var builtin embed.FS

// Names returns the names of the workloads that are built in, sorted.
func Names() []string {
	files, err := builtin.ReadDir(".")
	if err != nil {
		panic(err) // of a directory in the program itself
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".toml"))
	}
	slices.Sort(names)
	return names
}

// Builtin returns a copy of the workload of that name that is built in.
func Builtin(name string) (*Workload, bool) {
	if !slices.Contains(Names(), name) {
		return nil, false
	}
	data, err := builtin.ReadFile(name + ".toml")
	if err != nil {
		panic(err)
	}
	w, err := Parse(name, data)
	if err != nil {
		panic(err) // a test parses them all
	}
	return w, true
}

// Load returns the workload that an argument means: one that is built in, or that of a file, if it ends in .toml, or one
// of a single image with that reference. The last has no name.
func Load(arg string) (*Workload, error) {
	if w, ok := Builtin(arg); ok {
		return w, nil
	}
	if path.Ext(arg) == ".toml" && !strings.HasPrefix(arg, LayoutPrefix) {
		data, err := readFile(arg)
		if err != nil {
			return nil, fmt.Errorf("read workload: %w", err)
		}
		return Parse(arg, data)
	}
	if !strings.ContainsAny(arg, "/:@") { // no reference of an image without a registry; more likely a slip of the hand
		return nil, fmt.Errorf("find workload %q: is none of %s, no file FILE.toml, and no reference of an image", arg, strings.Join(Names(), ", "))
	}
	img := Image{Ref: arg, Name: arg}
	if err := img.check(); err != nil {
		return nil, fmt.Errorf("find image: %w", err)
	}
	return &Workload{Images: []Image{img}}, nil
}

// readFile reads a file as far as a workload may be long, and a byte more.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// Join returns the images of all arguments, see [Load], as one workload. An image that several of them have counts where it
// comes first. Name and description are those of the only argument; of several there are none.
func Join(args []string) (*Workload, error) {
	joined := new(Workload)
	seen := make(map[string]bool)
	for _, arg := range args {
		w, err := Load(arg)
		if err != nil {
			return nil, err
		}
		if len(args) == 1 {
			return w, nil
		}
		for _, img := range w.Images {
			if !seen[img.Ref] {
				seen[img.Ref] = true
				joined.Images = append(joined.Images, img)
			}
		}
	}
	if err := joined.check(); err != nil {
		return nil, fmt.Errorf("join %s: %w", strings.Join(args, ", "), err)
	}
	return joined, nil
}
