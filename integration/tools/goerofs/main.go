// Command goerofs lists EROFS images with the erofs project's Go reader. It prints a JSON object on a line for each
// image.
//
//	goerofs [-repeat N] IMAGE...
//
// It is a separate program and module, so that the product's go.mod does not require the reader.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	erofs "github.com/erofs/go-erofs"
)

// A listing is the result for one image.
type listing struct {
	Error string `json:"error,omitempty"` // the reason why the image cannot be read
	Nodes []node `json:"nodes,omitempty"`
}

// A node is a path of an image, in breadth-first order. Text with arbitrary bytes is in base64.
type node struct {
	Path    []byte      `json:"path"`
	First   []byte      `json:"first"` // the first path of the inode
	Mode    fs.FileMode `json:"mode"`
	UID     uint32      `json:"uid"`
	GID     uint32      `json:"gid"`
	Rdev    uint64      `json:"rdev"`
	Size    int64       `json:"size"`
	Sec     int64       `json:"sec"`
	Nsec    int64       `json:"nsec"`
	Nlink   uint64      `json:"nlink"`
	Target  []byte      `json:"target,omitempty"`
	Content []byte      `json:"content,omitempty"` // unless it is in chunks outside the image
	Xattrs  []xattr     `json:"xattrs,omitempty"`
}

type xattr struct {
	Name  []byte `json:"name"`
	Value []byte `json:"value"`
}

func main() {
	repeat := flag.Int("repeat", 1, "read each image so many `TIMES`")
	flag.Parse()
	out := json.NewEncoder(os.Stdout)
	for _, name := range flag.Args() {
		if err := out.Encode(read(name, *repeat)); err != nil {
			fmt.Fprintf(os.Stderr, "goerofs: error: %v\n", err)
			os.Exit(1)
		}
	}
}

func read(name string, repeat int) (l listing) {
	image, err := os.ReadFile(name)
	for i := 0; err == nil && i < repeat; i++ {
		l.Nodes, err = list(image)
	}
	if err != nil {
		return listing{Error: err.Error()}
	}
	return l
}

func list(image []byte) (nodes []node, err error) {
	fsys, err := erofs.Open(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	first := make(map[int64]string)
	for queue := []string{"/"}; len(queue) > 0; queue = queue[1:] {
		name := queue[0]
		n, ino, err := stat(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("stat %q: %w", name, err)
		}
		if _, dup := first[ino]; !dup {
			first[ino] = name
		}
		n.First = []byte(first[ino])
		nodes = append(nodes, n)
		if !n.Mode.IsDir() {
			continue
		}
		entries, err := fs.ReadDir(fsys, inFS(name))
		if err != nil {
			return nil, fmt.Errorf("list %q: %w", name, err)
		}
		for _, e := range entries {
			queue = append(queue, path.Join(name, e.Name()))
		}
	}
	return nodes, nil
}

// inFS converts an absolute path to the form of io/fs.
func inFS(name string) string {
	if name == "/" {
		return "."
	}
	return name[1:]
}

// chunkBased is EROFS_INODE_CHUNK_BASED, the layout of content outside a composefs image.
const chunkBased = 4

func stat(fsys fs.FS, name string) (n node, ino int64, err error) {
	links, ok := fsys.(fs.ReadLinkFS)
	if !ok {
		return n, 0, fmt.Errorf("%T does not read symbolic links", fsys)
	}
	info, err := links.Lstat(inFS(name))
	if err != nil {
		return n, 0, err
	}
	st, ok := info.Sys().(*erofs.Stat)
	if !ok {
		return n, 0, fmt.Errorf("stat has a %T", info.Sys())
	}
	n = node{
		Path: []byte(name), Mode: st.Mode, UID: st.UID, GID: st.GID, Rdev: uint64(st.Rdev), Size: st.Size,
		Sec: int64(st.Mtime), Nsec: int64(st.MtimeNs), Nlink: uint64(st.Nlink),
	}
	for k, v := range st.Xattrs {
		// go-erofs 0.3.1 appends a dot to the two ACL names.
		for _, acl := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
			if rest, ok := strings.CutPrefix(k, acl+"."); ok {
				k = acl + rest
			}
		}
		n.Xattrs = append(n.Xattrs, xattr{[]byte(k), []byte(v)})
	}
	switch {
	case st.Mode.Type() == fs.ModeSymlink:
		var target string
		target, err = links.ReadLink(inFS(name))
		n.Target = []byte(target)
	case st.Mode.IsRegular() && st.InodeLayout != chunkBased && st.Size > 0:
		var f fs.File
		if f, err = fsys.Open(inFS(name)); err == nil {
			n.Content, err = io.ReadAll(f)
		}
	}
	return n, st.Ino, err
}
