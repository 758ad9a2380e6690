package workload

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
)

// Bounds of a workload.
const (
	maxFile         = 1 << 20 // in bytes, as are the lengths below
	maxImages       = 1000
	maxWorkloadName = 64
	maxDescription  = 500
	maxRef          = 1000
	maxName         = 200
)

// LayoutPrefix is the prefix of references to OCI layouts.
const LayoutPrefix = "oci:"

// A Workload is a list of images in the order in which they are pulled. References and names are unique.
type Workload struct {
	Name        string  `toml:"name"`        // "": images that the user named
	Description string  `toml:"description"` // one line
	Images      []Image `toml:"images"`
}

// An Image is an image to pull.
type Image struct {
	Ref  string `toml:"ref"`  // of an OCI layout, see [LayoutPrefix], or of a registry
	Name string `toml:"name"` // shown in reports; never empty after parsing
}

// Layout returns DIR or DIR:TAG for an image that is an OCI layout.
func (img Image) Layout() (name string, ok bool) { return strings.CutPrefix(img.Ref, LayoutPrefix) }

// Parse reads a workload. Errors begin with file, which names the source, and have the line if it is known. Unknown
// keys are errors.
func Parse(file string, data []byte) (*Workload, error) {
	w, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read workload %s: %w", file, err)
	}
	return w, nil
}

func parse(data []byte) (*Workload, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	w := new(Workload)
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(w); err != nil {
		return nil, positioned(err)
	}
	if len(w.Name) > maxWorkloadName || !workloadName.MatchString(w.Name) {
		return nil, fmt.Errorf("key \"name\" is %q: must be lower-case letters, digits and single dashes between them, at most %d", w.Name, maxWorkloadName)
	}
	if err := line(w.Description, maxDescription); err != nil {
		return nil, fmt.Errorf("key \"description\" is %q: %w", w.Description, err)
	}
	for i := range w.Images {
		if w.Images[i].Name == "" {
			w.Images[i].Name = w.Images[i].Ref
		}
	}
	return w, w.check()
}

// workloadName matches names that can be part of a file name.
var workloadName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9])*$`)

// registryRef matches every reference to a registry, and more. The pull parses it.
var registryRef = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$`)

// check returns an error for the first invalid image.
func (w *Workload) check() error {
	if len(w.Images) == 0 {
		return errors.New("no images")
	}
	if len(w.Images) > maxImages {
		return fmt.Errorf("%d images, at most %d can be measured", len(w.Images), maxImages)
	}
	refs, names := make(map[string]bool), make(map[string]bool)
	for i, img := range w.Images {
		if err := img.check(); err != nil {
			return fmt.Errorf("image %d: %w", i+1, err)
		}
		switch {
		case refs[img.Ref]:
			return fmt.Errorf("image %d: a second image with the reference %q", i+1, img.Ref)
		case names[img.Name]:
			return fmt.Errorf("image %d: a second image with the name %q", i+1, img.Name)
		}
		refs[img.Ref], names[img.Name] = true, true
	}
	return nil
}

func (img Image) check() error {
	if err := line(img.Ref, maxRef); err != nil {
		return fmt.Errorf("reference %q: %w", img.Ref, err)
	}
	if dir, ok := img.Layout(); ok {
		if dir == "" || strings.HasPrefix(dir, ":") {
			return fmt.Errorf("reference %q: names no directory", img.Ref)
		}
	} else if !registryRef.MatchString(img.Ref) {
		return fmt.Errorf("reference %q: must be an image of a registry, or oci:DIR[:TAG]", img.Ref)
	}
	if err := line(img.Name, maxName); err != nil {
		return fmt.Errorf("name %q: %w", img.Name, err)
	}
	return nil
}

// line checks that a text, which reports show as it is, is one line of at most limit bytes.
func line(s string, limit int) error {
	switch {
	case len(s) > limit:
		return fmt.Errorf("more than %d bytes", limit)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("has characters that cannot be shown")
	}
	return nil
}

// positioned adds the line number to an error of the TOML parser.
func positioned(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		e := strict.Errors[0]
		n, _ := e.Position()
		return fmt.Errorf("line %d: unknown key %q", n, strings.Join(e.Key(), "."))
	}
	if syntax, ok := errors.AsType[*toml.DecodeError](err); ok {
		n, _ := syntax.Position()
		text := goType.ReplaceAllString(strings.TrimPrefix(syntax.Error(), "toml: "), "")
		return fmt.Errorf("line %d: %s", n, text)
	}
	return err
}

// goType matches the part of a TOML parser's error that is about our program, not about the file.
var goType = regexp.MustCompile(`struct field \S+ of type `)

// Resolve places relative OCI layouts below a directory.
func (w *Workload) Resolve(layouts string) {
	for i := range w.Images {
		if dir, ok := w.Images[i].Layout(); ok && !filepath.IsAbs(dir) {
			w.Images[i].Ref = LayoutPrefix + filepath.Join(layouts, dir)
		}
	}
}
