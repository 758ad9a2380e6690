package composefs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// Options selects the composefs format version (not the version of the image header, which is 1 in both).
//
// An image has version MinVersion, or version 1 if the tree contains whiteouts and MaxVersion permits it. The two
// differ in the attributes of directories that contain whiteouts. ostree and mkcomposefs(1) use 0 and 1.
type Options struct {
	MinVersion, MaxVersion uint32
}

func (o Options) validate() error {
	if o.MaxVersion > 1 || o.MinVersion > o.MaxVersion {
		return fmt.Errorf("%w: versions %d to %d", ErrInvalid, o.MinVersion, o.MaxVersion)
	}
	return nil
}

func (o Options) version(whiteouts bool) uint32 {
	if whiteouts {
		return o.MaxVersion
	}
	return o.MinVersion
}

// Marshal returns the canonical image of a tree: the same tree gives the same bytes as with mkcomposefs(1), so its
// digest can name the image.
//
// An inode with several names belongs to the first in breadth-first order, and its link count is the number of its
// names. The tree is not modified and may be read by others meanwhile.
//
// Allocations, apart from the image, stay below 300 bytes for each name, and 600 for each attribute with a unique name.
//
// A tree that has no image, or none that [Read] would turn into the same tree, gives an error that wraps [ErrInvalid]
// and names the path. In version 1 this includes an opaque directory that contains whiteouts: the format needs the
// opaque attribute there. The whiteouts in such a directory hide nothing.
func Marshal(root *Inode, opts Options) ([]byte, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	w := writer{seed: maphash.MakeSeed(), names: map[string]int32{}}
	if err := w.number(root); err != nil {
		return nil, err
	}
	w.version = opts.version(w.whiteouts)
	if err := w.collectXattrs(); err != nil {
		return nil, err
	}
	w.shareXattrs()
	if err := w.layOut(); err != nil {
		return nil, err
	}
	w.emit()
	return w.out, nil
}

// node is an inode in breadth-first order.
type node struct {
	*Inode
	parent    int32
	depth     int32
	firstKid  int32 // directories: kids[firstKid:endKid]
	endKid    int32
	firstAttr int32 // attrs[firstAttr:endAttr]
	endAttr   int32
	nlink     uint32
	mode      uint32 // as written
	stub      bool
	whiteouts bool // a directory that has a whiteout in it
	extended  bool
	shape
	xattrs int64 // bytes
}

func (n *node) headSize() int64 {
	if n.extended {
		return extendedSize
	}
	return compactSize
}

// external reports whether the data is in another file.
func (n *node) external() bool {
	return n.kind() == unix.S_IFREG && n.Size > 0 && n.Content == nil
}

// size returns i_size.
func (n *node) size() int64 {
	switch n.kind() {
	case unix.S_IFDIR:
		return n.blocks*blockSize + n.tail
	case unix.S_IFLNK:
		return int64(len(n.Target))
	}
	return n.Size
}

// kid is a directory entry, including . and ..
type kid struct {
	name string
	node int32
}

// attrName is an attribute name as written.
type attrName struct {
	full   string
	suffix string
	index  uint8
	filter uint32
}

// attr is a distinct pair of name and value.
type attr struct {
	name   int32
	uses   int32
	shared int64 // offset in the shared table, -1 if local
	size   int64
	hash   uint64
	value  []byte
}

// The maximal number of the writer's additions: a file has external data or is a whiteout, a root directory with
// whiteouts gets four marks and its own.
const (
	maxFileMarks = 2
	maxDirMarks  = 5
)

type writer struct {
	bare      bool // without stubs
	nodes     []node
	kids      []kid
	stubs     map[*Inode]struct{}
	whiteouts bool
	acl       bool
	version   uint32
	mtime     unix.Timespec // the oldest

	seed      maphash.Seed
	names     map[string]int32 // name as written -> index in attrNames
	attrNames []attrName
	pairs     []attr
	slots     []int32 // hash table over pairs, at most half full: index + 1
	arena     []byte
	attrCount int     // upper bound of len(attrs)
	attrs     []int32 // of all inodes, indexes in pairs
	shared    []int32 // indexes in pairs, in table order
	tableSize int64

	inodesEnd int64
	dataStart int64
	blocks    int64 // data blocks
	out       []byte
}

// number walks the tree breadth first.
func (w *writer) number(root *Inode) error {
	if root == nil || !root.IsDir() {
		return fmt.Errorf("%w: root is not a directory", ErrInvalid)
	}
	names := countNames(root) + stubs
	seen := make(map[*Inode]int32, names)
	w.nodes = append(make([]node, 0, names+1), node{Inode: root})
	w.kids = make([]kid, 0, names)
	seen[root] = 0
	for i := 0; i < len(w.nodes); i++ {
		if err := w.enter(int32(i), seen); err != nil {
			return err
		}
	}
	return nil
}

// countNames counts the names in a tree, including . and .. of each directory. It bounds the number of inodes, so that
// lists need not grow, which would take three times as much memory.
func countNames(root *Inode) (names int) {
	dirs := []*Inode{root}
	seen := map[*Inode]struct{}{root: {}}
	for i := 0; i < len(dirs); i++ {
		names += len(dirs[i].Entries) + 2
		for _, e := range dirs[i].Entries {
			if e.Inode == nil || !e.Inode.IsDir() {
				continue
			}
			if _, ok := seen[e.Inode]; !ok { // number rejects a directory with two names
				seen[e.Inode] = struct{}{}
				dirs = append(dirs, e.Inode)
			}
		}
	}
	return names
}

// enter validates an inode and numbers those children of which it is the first parent.
func (w *writer) enter(i int32, seen map[*Inode]int32) error {
	n := &w.nodes[i]
	if err := n.validate(); err != nil {
		return w.pathError(i, "", err)
	}
	if i == 0 || compareTime(n.Mtime, w.mtime) < 0 {
		w.mtime = n.Mtime
	}
	w.attrCount += len(n.Xattrs) + maxFileMarks
	n.mode = n.Mode
	if n.IsWhiteout() && !n.stub {
		n.mode = n.Mode&^unix.S_IFMT | unix.S_IFREG
	}
	if !n.IsDir() {
		return nil
	}
	w.attrCount += maxDirMarks - maxFileMarks
	n.nlink = 2
	entries := n.Entries
	if i == 0 && !w.bare {
		entries = w.withStubs(n.Inode)
	}
	n.firstKid = int32(len(w.kids))
	dots := []kid{{".", i}, {"..", n.parent}}
	for k, e := range entries {
		if !validName(e.Name) || e.Inode == nil {
			return w.pathError(i, e.Name, fmt.Errorf("%w: name %q", ErrInvalid, e.Name))
		}
		if k > 0 && entries[k-1].Name >= e.Name {
			return w.pathError(i, e.Name, fmt.Errorf("%w: entry not in order", ErrInvalid))
		}
		for len(dots) > 0 && dots[0].name < e.Name {
			w.kids = append(w.kids, dots[0])
			dots = dots[1:]
		}
		c, err := w.child(i, e, seen)
		if err != nil {
			return w.pathError(i, e.Name, err)
		}
		w.kids = append(w.kids, kid{e.Name, c})
	}
	w.kids = append(w.kids, dots...)
	if len(w.kids) > math.MaxInt32 {
		return fmt.Errorf("%w: too many entries", ErrInvalid)
	}
	w.nodes[i].endKid = int32(len(w.kids))
	return nil
}

// child returns the number of an entry's inode, a new number for its first name.
func (w *writer) child(dir int32, e Entry, seen map[*Inode]int32) (int32, error) {
	depth := w.nodes[dir].depth + 1
	if c, ok := seen[e.Inode]; ok {
		if e.Inode.IsDir() {
			return 0, fmt.Errorf("%w: directory has two names", ErrInvalid)
		}
		w.nodes[c].nlink++
		return c, nil
	}
	if depth > MaxDepth {
		return 0, fmt.Errorf("%w: more than %d levels deep", ErrInvalid, MaxDepth)
	}
	c := int32(len(w.nodes))
	seen[e.Inode] = c
	_, stub := w.stubs[e.Inode]
	w.nodes = append(w.nodes, node{Inode: e.Inode, parent: dir, depth: depth, nlink: 1, stub: stub})
	switch d := &w.nodes[dir]; {
	case stub:
	case e.Inode.IsDir():
		d.nlink++
	case e.Inode.IsWhiteout():
		d.whiteouts = true
		w.whiteouts = true
	}
	return c, nil
}

// withStubs returns the entries of the root, with a character device 0:0 for each of the names 00 to ff that the tree
// lacks.
func (w *writer) withStubs(root *Inode) []Entry {
	proto := Inode{Mode: stubMode, UID: root.UID, GID: root.GID, Mtime: root.Mtime, Xattrs: selinuxXattr(root)}
	w.stubs = make(map[*Inode]struct{}, stubs)
	entries := make([]Entry, 0, len(root.Entries)+stubs)
	rest := root.Entries
	for i := range stubs {
		name := stubName(i)
		for len(rest) > 0 && rest[0].Name < name {
			entries = append(entries, rest[0])
			rest = rest[1:]
		}
		if len(rest) > 0 && rest[0].Name == name {
			continue
		}
		stub := proto
		w.stubs[&stub] = struct{}{}
		entries = append(entries, Entry{name, &stub})
	}
	return append(entries, rest...)
}

// selinuxXattr returns the label that the stubs get from the root, if it has one.
func selinuxXattr(root *Inode) []Xattr {
	for i, x := range root.Xattrs {
		if x.Name == atfs.XattrSELinux {
			return root.Xattrs[i : i+1 : i+1]
		}
	}
	return nil
}

// pathError names the inode in err.
func (w *writer) pathError(dir int32, name string, err error) error {
	var path strings.Builder
	for _, part := range slices.Backward(w.path(dir)) {
		path.WriteString("/" + part)
	}
	if name != "" || path.Len() == 0 {
		path.WriteString("/" + name)
	}
	return fmt.Errorf("write %q: %w", path.String(), err)
}

// path returns the names on the path to a node, the last one first.
func (w *writer) path(i int32) (names []string) {
	for i != 0 {
		dir := &w.nodes[w.nodes[i].parent]
		for _, k := range w.kids[dir.firstKid:dir.endKid] {
			if k.node == i && k.name != "." && k.name != ".." {
				names = append(names, k.name)
				break
			}
		}
		i = w.nodes[i].parent
	}
	return names
}

// collectXattrs gives every inode its attributes in written form, and counts the uses of each.
func (w *writer) collectXattrs() error {
	if w.attrCount > math.MaxInt32/4 {
		return fmt.Errorf("%w: too many xattrs", ErrInvalid)
	}
	w.slots = make([]int32, 1<<bits.Len(uint(2*w.attrCount)))
	w.attrs = make([]int32, 0, w.attrCount)
	w.pairs = make([]attr, 0, w.attrCount/2)
	var list []Xattr
	for i := range w.nodes {
		n := &w.nodes[i]
		var err error
		if list, err = w.rewrite(list[:0], int32(i)); err != nil {
			return w.pathError(int32(i), "", err)
		}
		n.firstAttr = int32(len(w.attrs))
		for _, x := range list {
			w.attrs = append(w.attrs, w.pair(w.intern(x.Name), x.Value))
		}
		n.endAttr = int32(len(w.attrs))
	}
	return nil
}

// rewrite appends the attributes of a node in the form that overlayfs reads, sorted by name.
func (w *writer) rewrite(list []Xattr, i int32) ([]Xattr, error) {
	n := &w.nodes[i]
	opaque := n.whiteouts && w.version >= 1
	for _, x := range n.Xattrs {
		if opaque && (x.Name == xattrOpaque || x.Name == xattrUserOpaque) {
			return nil, fmt.Errorf("%w: xattr %s on a directory with whiteouts", ErrInvalid, x.Name)
		}
		if rest, ok := strings.CutPrefix(x.Name, overlayPrefix); ok {
			x.Name = escapedPrefix + rest
		}
		list = append(list, x)
	}
	own := len(list)
	if n.external() {
		list = append(list,
			Xattr{xattrMetacopy, w.metacopy(n.Verity)},
			Xattr{xattrRedirect, w.redirect(n.Payload)})
	}
	if n.mode != n.Mode {
		list = append(list, Xattr{Name: xattrEscapedWhiteout}, Xattr{Name: xattrUserWhiteout})
	}
	if n.whiteouts {
		list = append(list, Xattr{Name: xattrEscapedWhiteouts}, Xattr{Name: xattrUserWhiteouts})
	}
	if opaque {
		list = append(list, Xattr{xattrEscapedOpaque, []byte("x")}, Xattr{xattrUserOpaque, []byte("x")})
	}
	if i == 0 {
		list = append(list, Xattr{xattrOpaque, []byte("y")})
	}
	if len(list) > own {
		slices.SortFunc(list, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	}
	return list, nil
}

// metacopy returns the value of the attribute that tells overlayfs that the data is external, with its digest if it has
// one.
func (w *writer) metacopy(digest []byte) []byte {
	if digest == nil {
		return nil
	}
	b := w.alloc(len(metacopyHeader) + len(digest))
	copy(b[copy(b, metacopyHeader[:]):], digest)
	return b
}

// redirect returns the value of the attribute that gives overlayfs the path of the data.
func (w *writer) redirect(payload string) []byte {
	b := w.alloc(1 + len(payload))
	b[0] = '/'
	copy(b[1:], payload)
	return b
}

// alloc cuts n bytes from a larger allocation.
func (w *writer) alloc(n int) []byte {
	if n > len(w.arena) {
		w.arena = make([]byte, max(n, 64<<10))
	}
	b := w.arena[:n:n]
	w.arena = w.arena[n:]
	return b
}

// intern returns the index of a name in w.attrNames.
func (w *writer) intern(full string) int32 {
	if id, ok := w.names[full]; ok {
		return id
	}
	index, suffix := xattrIndex(full)
	id := int32(len(w.attrNames))
	w.names[full] = id
	w.attrNames = append(w.attrNames, attrName{full, suffix, index, filterBit(index, suffix)})
	if full == xattrACLAccess || full == xattrACLDefault {
		w.acl = true
	}
	return id
}

// pair returns the index of a name and value in w.pairs and counts a use.
func (w *writer) pair(name int32, value []byte) int32 {
	hash := maphash.Bytes(w.seed, value) + uint64(name)*0x9e3779b97f4a7c15
	mask := uint64(len(w.slots) - 1)
	slot := hash & mask
	for w.slots[slot] != 0 {
		id := w.slots[slot] - 1
		p := &w.pairs[id]
		if p.hash == hash && p.name == name && string(p.value) == string(value) {
			p.uses++
			return id
		}
		slot = (slot + 1) & mask
	}
	w.pairs = append(w.pairs, attr{
		name: name, uses: 1, shared: -1, hash: hash, value: value,
		size: xattrSize(w.attrNames[name].suffix, value),
	})
	w.slots[slot] = int32(len(w.pairs))
	return int32(len(w.pairs) - 1)
}

// shareXattrs lays out the table of attributes that several inodes share.
func (w *writer) shareXattrs() {
	for id := range w.pairs {
		if w.pairs[id].uses > 1 {
			w.shared = append(w.shared, int32(id))
		}
	}
	slices.SortFunc(w.shared, func(a, b int32) int {
		p, q := &w.pairs[a], &w.pairs[b]
		if p.name != q.name {
			return cmp.Compare(w.attrNames[q.name].full, w.attrNames[p.name].full)
		}
		return compareValue(q.value, p.value)
	})
	for _, id := range w.shared {
		w.pairs[id].shared = w.tableSize
		w.tableSize += w.pairs[id].size
	}
}

// nodeAttrs returns the indexes of a node's attributes. The first maxShared of them that are in the shared table are
// written as references to it.
func (w *writer) nodeAttrs(n *node) []int32 { return w.attrs[n.firstAttr:n.endAttr] }

// layOut determines the location of everything.
func (w *writer) layOut() error {
	pos := int64(firstInode)
	for i := range w.nodes {
		n := &w.nodes[i]
		n.xattrs = w.xattrBodySize(n)
		if n.xattrs > xattrHeaderSize+(maxXattrCount-1)*4 {
			return w.pathError(int32(i), "", fmt.Errorf("%w: xattrs of %d bytes", ErrInvalid, n.xattrs))
		}
		n.shape = w.wanted(n)
		n.extended = n.Mtime != w.mtime || max(n.nlink, n.UID, n.GID) > math.MaxUint16 || n.size() > math.MaxUint32
		n.pos = pos
		n.shape = place(n.shape, n.headSize()+n.xattrs, n.kind() == unix.S_IFLNK)
		pos = n.pos + n.headSize() + n.xattrs + n.tail
		w.blocks += n.blocks
	}
	w.inodesEnd = roundUp(pos, slotSize)
	w.dataStart = roundUp(w.inodesEnd+w.tableSize, blockSize)
	if w.dataStart/blockSize+w.blocks > math.MaxUint32 {
		return fmt.Errorf("%w: image of more than 2^32 blocks", ErrInvalid)
	}
	return nil
}

// wanted returns the blocks and the tail that an inode's type asks for.
func (w *writer) wanted(n *node) (s shape) {
	switch n.kind() {
	case unix.S_IFDIR:
		var p dirPacker
		for _, k := range w.kids[n.firstKid:n.endKid] {
			p.add(k.name)
		}
		s.blocks, s.tail = p.shape()
	case unix.S_IFLNK:
		s.tail = int64(len(n.Target))
	case unix.S_IFREG:
		switch {
		case n.external():
			s.tail = chunkTable(n.Size)
		case n.Size > 0:
			s.blocks, s.tail = splitTail(n.Size/blockSize, n.Size%blockSize)
		}
	}
	return s
}

func (w *writer) xattrBodySize(n *node) int64 {
	ids := w.nodeAttrs(n)
	if len(ids) == 0 {
		return 0
	}
	size := int64(xattrHeaderSize)
	shared := 0
	for _, id := range ids {
		if w.pairs[id].shared >= 0 && shared < maxShared {
			shared++
			size += 4
		} else {
			size += w.pairs[id].size
		}
	}
	return size
}

var le = binary.LittleEndian

// emit writes the image.
func (w *writer) emit() {
	w.out = make([]byte, w.dataStart+w.blocks*blockSize)
	w.emitHeader()
	data := w.dataStart
	for i := range w.nodes {
		n := &w.nodes[i]
		w.emitInode(int32(i), data)
		w.emitXattrs(n)
		tail := w.out[n.pos+n.headSize()+n.xattrs:][:n.tail]
		blocks := w.out[data:][:n.blocks*blockSize]
		switch n.kind() {
		case unix.S_IFDIR:
			w.emitDir(n, blocks, tail)
		case unix.S_IFLNK:
			copy(blocks, n.Target)
			copy(tail, n.Target)
		case unix.S_IFREG:
			emitData(n, blocks, tail)
		}
		data += n.blocks * blockSize
	}
	pos := w.inodesEnd
	for _, id := range w.shared {
		pos += w.emitXattr(w.out[pos:], id)
	}
}

func (w *writer) emitHeader() {
	b := w.out
	le.PutUint32(b, headerMagic)
	le.PutUint32(b[4:], headerVersion)
	if w.acl {
		le.PutUint32(b[8:], flagACL)
	}
	le.PutUint32(b[12:], w.version)
	b = b[superOffset:]
	le.PutUint32(b, superMagic)
	le.PutUint32(b[8:], superCompat)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(w.nodes[0].pos>>nidBits))
	le.PutUint64(b[16:], uint64(len(w.nodes)))
	le.PutUint64(b[24:], uint64(w.mtime.Sec))
	le.PutUint32(b[32:], uint32(w.mtime.Nsec))
	le.PutUint32(b[36:], uint32(w.dataStart/blockSize+w.blocks))
	le.PutUint32(b[44:], uint32(w.inodesEnd/blockSize))
}

func (w *writer) emitInode(i int32, data int64) {
	n := &w.nodes[i]
	format := uint16(layoutPlain)
	if n.tail > 0 {
		format = layoutInline
	}
	var u uint32
	if n.blocks > 0 {
		u = uint32(data / blockSize)
	}
	switch {
	case n.external():
		format = layoutChunk
		u = u&^0xffff | uint32(chunkBits(n.Size)-blockBits)
	case n.mode&unix.S_IFMT == unix.S_IFCHR, n.mode&unix.S_IFMT == unix.S_IFBLK:
		u = uint32(n.Rdev)
	}
	format <<= 1
	if n.extended {
		format |= 1
	}
	var icount uint16
	if n.xattrs > 0 {
		icount = uint16((n.xattrs-xattrHeaderSize)/4 + 1)
	}
	b := w.out[n.pos:]
	le.PutUint16(b, format)
	le.PutUint16(b[2:], icount)
	le.PutUint16(b[4:], uint16(n.mode))
	le.PutUint32(b[16:], u)
	le.PutUint32(b[20:], uint32(i))
	if !n.extended {
		le.PutUint16(b[6:], uint16(n.nlink))
		le.PutUint32(b[8:], uint32(n.size()))
		le.PutUint16(b[24:], uint16(n.UID))
		le.PutUint16(b[26:], uint16(n.GID))
		return
	}
	le.PutUint64(b[8:], uint64(n.size()))
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Mtime.Sec))
	le.PutUint32(b[40:], uint32(n.Mtime.Nsec))
	le.PutUint32(b[44:], n.nlink)
}

func (w *writer) emitXattrs(n *node) {
	ids := w.nodeAttrs(n)
	if len(ids) == 0 {
		return
	}
	body := w.out[n.pos+n.headSize():]
	filter := ^uint32(0)
	ref := body[xattrHeaderSize:]
	shared := 0
	for _, id := range ids {
		p := &w.pairs[id]
		filter &^= w.attrNames[p.name].filter
		if p.shared >= 0 && shared < maxShared {
			shared++
			le.PutUint32(ref, uint32((w.inodesEnd%blockSize+p.shared)/4))
			ref = ref[4:]
		}
	}
	le.PutUint32(body, filter)
	body[4] = uint8(shared)
	local := ref
	shared = 0
	for _, id := range ids {
		if w.pairs[id].shared >= 0 && shared < maxShared {
			shared++
			continue
		}
		local = local[w.emitXattr(local, id):]
	}
}

func (w *writer) emitXattr(b []byte, id int32) int64 {
	p := &w.pairs[id]
	name := &w.attrNames[p.name]
	b[0] = uint8(len(name.suffix))
	b[1] = name.index
	le.PutUint16(b[2:], uint16(len(p.value)))
	copy(b[xattrEntrySize:], name.suffix)
	copy(b[xattrEntrySize+len(name.suffix):], p.value)
	return p.size
}

// emitDir writes the entries: the complete blocks to blocks, the rest to the tail or to the last block.
func (w *writer) emitDir(n *node, blocks, tail []byte) {
	kids := w.kids[n.firstKid:n.endKid]
	var p dirPacker
	first := 0
	for i, k := range kids {
		if p.add(k.name) {
			w.emitDirents(blocks, kids[first:i])
			blocks = blocks[blockSize:]
			first = i
		}
	}
	if len(blocks) > 0 {
		w.emitDirents(blocks, kids[first:])
		return
	}
	w.emitDirents(tail, kids[first:])
}

func (w *writer) emitDirents(b []byte, kids []kid) {
	off := direntSize * len(kids)
	for i, k := range kids {
		c := &w.nodes[k.node]
		d := b[i*direntSize:]
		le.PutUint64(d, uint64(c.pos>>nidBits))
		le.PutUint16(d[8:], uint16(off))
		d[10] = fileType(c.mode)
		off += copy(b[off:], k.name)
	}
}

func emitData(n *node, blocks, tail []byte) {
	if n.external() {
		// EROFS_NULL_ADDR: no chunk is stored.
		for i := range blocks {
			blocks[i] = 0xff
		}
		for i := range tail {
			tail[i] = 0xff
		}
		return
	}
	cut := len(n.Content) - len(tail)
	copy(blocks, n.Content[:cut])
	copy(tail, n.Content[cut:])
}
