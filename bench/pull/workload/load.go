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

// Names returns the names of the built-in workloads, sorted.
func Names() []string {
	files, err := builtin.ReadDir(".")
	if err != nil {
		panic(err) // the directory is part of the program
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".toml"))
	}
	slices.Sort(names)
	return names
}

// Builtin returns a copy of a built-in workload.
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

// Load returns the workload of an argument: a built-in workload; that of a file, if the argument ends in .toml; or else
// a workload of one image with that reference, without a name.
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
	if !strings.ContainsAny(arg, "/:@") { // not the reference of an image without a registry, but more likely a typing error
		return nil, fmt.Errorf("find workload %q: is none of %s, no file FILE.toml, and no reference of an image", arg, strings.Join(Names(), ", "))
	}
	img := Image{Ref: arg, Name: arg}
	if err := img.check(); err != nil {
		return nil, fmt.Errorf("find image: %w", err)
	}
	return &Workload{Images: []Image{img}}, nil
}

// readFile reads a file up to one byte more than a workload may have.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// Join returns the images of all arguments as one workload; see [Load]. An image that occurs several times counts at
// its first place. A single argument keeps its name and description.
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
