package composefs

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits bounds the images that [Read] accepts. Zero means no limit.
type Limits struct {
	Inodes int // without the writer's 256 stubs
	Depth  int // directories between the root and an entry; at most MaxDepth
}

// Read is the exact inverse of [Marshal]: it returns the tree from which the image was made, with hard links as shared
// inodes and without the writer's additions.
//
// Byte slices of the tree point into b, which must not be changed afterwards.
//
// The image may come from anyone. Read accepts only Marshal's layout: inodes lie in breadth-first order and do not
// overlap, so no directory is reached twice and no byte is parsed for two inodes. It takes the time of one pass and of
// a binary search for each additional name of an inode. Allocations stay below 48 times len(b), reached by an image of
// nothing but attributes with distinct names; that of an operating system takes 3 times len(b).
//
// Errors wrap [ErrCorrupt] or [ErrLimit] and name the place. Read never returns a partial tree. It ignores padding.
func Read(b []byte, limits Limits) (*Inode, error) {
	r := reader{b: b, limits: limits, names: map[rawName]int32{}}
	if err := r.readHeader(); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	if err := r.readInodes(); err != nil {
		return nil, err
	}
	if err := r.readTable(); err != nil {
		return nil, fmt.Errorf("read shared xattrs: %w", err)
	}
	if err := r.restore(); err != nil {
		return nil, err
	}
	return r.nodes[0].Inode, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// inodeRecord is an inode, in image order.
type inodeRecord struct {
	*Inode
	pos       int64
	parent    int32
	depth     int32
	names     uint32 // names found, for directories with . and ..
	nlink     uint32
	fileType  uint8
	layout    uint8
	whiteouts bool // directory: is the first to name a whiteout
	chunkFmt  uint32
	xattrPos  int64
	xattrSize int64
}

type reader struct {
	b       []byte
	text    string // b as a string, of which names are parts
	limits  Limits
	version uint32
	acl     bool
	seenACL bool
	count   int
	mtime   unix.Timespec
	tableAt int64 // block of the attribute area in bytes

	slab  []Inode
	nodes []inodeRecord
	stubs []int32 // devices 0:0
	end   int64   // of the inodes read so far
	data  int64   // start of the next data block
	start int64   // of the data blocks

	names     map[rawName]int32
	attrNames []readName
	table     []rawXattr // shared attributes in table order
	byOffset  []int32    // offset in words from the end of the inodes -> table index + 1
	xattrs    []Xattr    // the rest of the current slab
	scratch   []rawXattr
}

// rawName is an attribute name as stored.
type rawName struct {
	index  uint8
	suffix string
}

// rawXattr is an attribute as stored.
type rawXattr struct {
	name  int32
	value []byte
	text  string // the same bytes
}

func (r *reader) readHeader() error {
	b := r.b
	if len(b) < 2*blockSize || len(b)%blockSize != 0 {
		return corrupt("size %d", len(b))
	}
	if got := le.Uint32(b); got != headerMagic {
		return corrupt("magic %#x", got)
	}
	if got := le.Uint32(b[4:]); got != headerVersion {
		return corrupt("header version %d", got)
	}
	flags := le.Uint32(b[8:])
	r.acl = flags == flagACL
	r.version = le.Uint32(b[12:])
	if flags > flagACL || r.version > 1 {
		return corrupt("flags %#x, composefs version %d", flags, r.version)
	}
	s := b[superOffset:firstInode]
	if got := le.Uint32(s); got != superMagic {
		return corrupt("superblock magic %#x", got)
	}
	for off, want := range map[int]uint32{4: 0, 8: superCompat, 40: 0, 80: 0} {
		if got := le.Uint32(s[off:]); got != want {
			return corrupt("superblock field at %d is %#x", off, got)
		}
	}
	if s[12] != blockBits || s[13] != 0 {
		return corrupt("block size 2^%d, %d extension slots", s[12], s[13])
	}
	if got := le.Uint32(s[36:]); int64(got)*blockSize != int64(len(b)) {
		return corrupt("%d blocks in an image of %d bytes", got, len(b))
	}
	count := le.Uint64(s[16:])
	if count <= stubs || count > uint64(len(b)/compactSize) {
		return corrupt("%d inodes in an image of %d bytes", count, len(b))
	}
	r.count = int(count)
	if r.limits.Inodes > 0 && r.count-stubs > r.limits.Inodes {
		return fmt.Errorf("%w: %d inodes", ErrLimit, r.count-stubs)
	}
	r.mtime = unix.Timespec{Sec: int64(le.Uint64(s[24:])), Nsec: int64(le.Uint32(s[32:]))}
	if r.mtime.Nsec >= 1e9 {
		return corrupt("build time has %d nanoseconds", r.mtime.Nsec)
	}
	r.tableAt = int64(le.Uint32(s[44:])) * blockSize
	return nil
}

// readInodes reads all inodes in image order, which is breadth first.
func (r *reader) readInodes() error {
	r.text = string(r.b)
	r.slab = make([]Inode, r.count)
	r.nodes = make([]inodeRecord, 0, r.count)
	r.end = firstInode
	root := int64(le.Uint16(r.b[superOffset+14:])) << nidBits
	if _, err := r.reach(0, root, ftDir); err != nil {
		return fmt.Errorf("read root: %w", err)
	}
	for i := 0; i < len(r.nodes); i++ {
		if err := r.readInode(int32(i)); err != nil {
			return fmt.Errorf("read inode %d: %w", i, err)
		}
	}
	if len(r.nodes) != r.count {
		return corrupt("%d of %d inodes found", len(r.nodes), r.count)
	}
	if r.data != int64(len(r.b)) {
		return corrupt("data ends at %d, image at %d", r.data, len(r.b))
	}
	r.end = roundUp(r.end, slotSize)
	if r.end > r.start || r.tableAt != r.end/blockSize*blockSize {
		return corrupt("inodes end at %d, xattrs begin at %d, data at %d", r.end, r.tableAt, r.start)
	}
	return nil
}

// reach returns the inode at pos. The first name of an inode comes in image order; other names are hard links.
func (r *reader) reach(dir int32, pos int64, typ uint8) (int32, error) {
	n := len(r.nodes)
	if n == 0 || pos > r.nodes[n-1].pos {
		return r.discover(dir, pos, typ)
	}
	i, ok := slices.BinarySearchFunc(r.nodes, pos, func(n inodeRecord, pos int64) int { return cmp.Compare(n.pos, pos) })
	if !ok {
		return 0, corrupt("no inode at %d", pos)
	}
	c := &r.nodes[i]
	if c.fileType != typ {
		return 0, corrupt("inode %d has types %d and %d", i, c.fileType, typ)
	}
	if typ == ftDir {
		return 0, corrupt("directory %d has two names", i)
	}
	c.names++
	return int32(i), nil
}

func (r *reader) discover(dir int32, pos int64, typ uint8) (int32, error) {
	n := len(r.nodes)
	if n == r.count {
		return 0, corrupt("more than %d inodes", r.count)
	}
	rec := inodeRecord{Inode: &r.slab[n], pos: pos, parent: dir, fileType: typ, names: 1}
	if typ == ftDir {
		rec.names = 2 // . and its name
	}
	if n > 0 {
		rec.depth = r.nodes[dir].depth + 1
		if rec.depth > MaxDepth {
			return 0, corrupt("more than %d levels deep", MaxDepth)
		}
		if r.limits.Depth > 0 && int(rec.depth) > r.limits.Depth {
			return 0, fmt.Errorf("%w: depth %d", ErrLimit, rec.depth)
		}
		if typ == ftDir {
			r.nodes[dir].names++ // .. in it
		}
	}
	r.nodes = append(r.nodes, rec)
	return int32(n), nil
}

// readInode reads an inode without its attributes.
func (r *reader) readInode(i int32) error {
	n := &r.nodes[i]
	head, u, size, err := r.readFields(i)
	if err != nil {
		return err
	}
	s := shape{pos: r.end}
	meta := head + n.xattrSize
	tailAt := n.pos + meta
	switch n.kind() {
	case unix.S_IFDIR:
		s.blocks, s.tail, err = r.readDir(i, u, size, tailAt)
		n = &r.nodes[i]
	case unix.S_IFLNK:
		s.tail = size
		if size == 0 || size > maxTarget {
			err = corrupt("symlink target of %d bytes", size)
		}
	case unix.S_IFREG:
		s.blocks, s.tail = r.wantedData(n, u, size)
	default:
		if size != 0 {
			err = corrupt("size %d on mode %#o", size, n.Mode)
		}
	}
	if err != nil {
		return err
	}
	got := place(s, meta, n.kind() == unix.S_IFLNK)
	if got.pos != n.pos {
		return corrupt("at %d instead of %d", n.pos, got.pos)
	}
	wantLayout := uint8(layoutPlain)
	if got.tail > 0 {
		wantLayout = layoutInline
	}
	if n.layout != wantLayout && n.layout != layoutChunk {
		return corrupt("data layout %d", n.layout)
	}
	r.end = tailAt + got.tail
	if r.end > r.start {
		return corrupt("inode ends at %d, data starts at %d", r.end, r.start)
	}
	return r.readData(n, u, size, tailAt, got)
}

// readFields reads the fixed part and returns its size, i_u and i_size.
func (r *reader) readFields(i int32) (head int64, u uint32, size int64, err error) {
	n := &r.nodes[i]
	b := r.b[min(n.pos, int64(len(r.b))):]
	if len(b) < extendedSize || n.pos < r.end {
		return 0, 0, 0, corrupt("at %d, the one before ends at %d", n.pos, r.end)
	}
	format := le.Uint16(b)
	n.layout = uint8(format >> 1)
	n.Mode = uint32(le.Uint16(b[4:]))
	u = le.Uint32(b[16:])
	if ino := le.Uint32(b[20:]); format > layoutChunk<<1|1 || ino != uint32(i) {
		return 0, 0, 0, corrupt("format %#x, number %d", format, ino)
	}
	if n.fileType != fileType(n.Mode) {
		return 0, 0, 0, corrupt("mode %#o, directory entry has type %d", n.Mode, n.fileType)
	}
	if format&1 == 0 {
		head = compactSize
		n.nlink = uint32(le.Uint16(b[6:]))
		size = int64(le.Uint32(b[8:]))
		n.UID = uint32(le.Uint16(b[24:]))
		n.GID = uint32(le.Uint16(b[26:]))
		n.Mtime = r.mtime
	} else {
		head = extendedSize
		size = int64(le.Uint64(b[8:]))
		n.UID = le.Uint32(b[24:])
		n.GID = le.Uint32(b[28:])
		n.Mtime = unix.Timespec{Sec: int64(le.Uint64(b[32:])), Nsec: int64(le.Uint32(b[40:]))}
		n.nlink = le.Uint32(b[44:])
	}
	if size < 0 || n.Mtime.Nsec >= 1e9 {
		return 0, 0, 0, corrupt("size %d, %d nanoseconds", size, n.Mtime.Nsec)
	}
	if count := int64(le.Uint16(b[2:])); count > 0 {
		n.xattrSize = xattrHeaderSize + (count-1)*4
	}
	n.xattrPos = n.pos + head
	if n.xattrPos+n.xattrSize > int64(len(r.b)) {
		return 0, 0, 0, corrupt("xattrs end at %d", n.xattrPos+n.xattrSize)
	}
	kind := n.kind()
	if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		n.Rdev = uint64(u)
	}
	if n.IsWhiteout() {
		r.stubs = append(r.stubs, i)
	}
	if i == 0 {
		if int64(u)*blockSize > int64(len(r.b)) {
			return 0, 0, 0, corrupt("data starts at block %d", u)
		}
		r.start = int64(u) * blockSize
		r.data = r.start
	}
	return head, u, size, nil
}

// wantedData is the counterpart of writer.wanted for regular files.
func (r *reader) wantedData(n *inodeRecord, u uint32, size int64) (blocks, tail int64) {
	n.Size = size
	if size == 0 {
		return 0, 0
	}
	if n.layout == layoutChunk {
		n.chunkFmt = u & 0xffff
		return 0, chunkTable(size)
	}
	return splitTail(size/blockSize, size%blockSize)
}

// takeBlocks returns the next data blocks, which must begin at block u.
func (r *reader) takeBlocks(u uint32, blocks int64) ([]byte, error) {
	if blocks == 0 {
		return nil, nil
	}
	at := r.data
	if int64(u)*blockSize != at || blocks > (int64(len(r.b))-at)/blockSize {
		return nil, corrupt("%d data blocks at block %d, expected at %d", blocks, u, at/blockSize)
	}
	r.data += blocks * blockSize
	return r.b[at:r.data:r.data], nil
}

// readData checks the location of an inode's data, unless it is a directory, and takes the data.
func (r *reader) readData(n *inodeRecord, u uint32, size, tailAt int64, s shape) error {
	kind := n.kind()
	if n.layout == layoutChunk {
		if kind != unix.S_IFREG || size == 0 || int(n.chunkFmt) != chunkBits(size)-blockBits {
			return corrupt("chunk format %#x for mode %#o, size %d", n.chunkFmt, n.Mode, size)
		}
		u = u&^0xffff | uint32(r.data/blockSize)&0xffff
	}
	if kind == unix.S_IFDIR {
		return nil
	}
	blocks, err := r.takeBlocks(u, s.blocks)
	if err != nil {
		return err
	}
	tail := r.b[tailAt : tailAt+s.tail : tailAt+s.tail]
	switch {
	case kind == unix.S_IFLNK && s.blocks > 0:
		n.Target = string(blocks[:size])
	case kind == unix.S_IFLNK:
		n.Target = r.text[tailAt : tailAt+size]
	case kind == unix.S_IFREG && size > 0 && n.layout != layoutChunk:
		n.Content = tail
		if len(blocks) > 0 {
			n.Content = append(blocks[:size-s.tail:size-s.tail], tail...)
		}
	}
	if kind == unix.S_IFLNK && strings.IndexByte(n.Target, 0) >= 0 {
		return corrupt("symlink target %q", n.Target)
	}
	return nil
}

// readDir reads the entries of a directory and returns the blocks and the tail that the writer would have asked for.
func (r *reader) readDir(i int32, u uint32, size, tailAt int64) (blocks, tail int64, err error) {
	inline := int64(0)
	if r.nodes[i].layout == layoutInline {
		inline = size % blockSize
	}
	if inline > int64(len(r.b))-tailAt {
		return 0, 0, corrupt("directory of %d bytes", size)
	}
	if (size-inline)%blockSize != 0 || size == 0 {
		return 0, 0, corrupt("directory of %d bytes", size)
	}
	data, err := r.takeBlocks(u, size/blockSize)
	if err != nil {
		return 0, 0, err
	}
	d := dirReader{r: r, dir: i}
	if err := d.read(r.data-int64(len(data)), r.data, blockSize); err != nil {
		return 0, 0, err
	}
	if err := d.read(tailAt, tailAt+inline, inline); err != nil {
		return 0, 0, err
	}
	if d.dots != 2 {
		return 0, 0, corrupt("directory without . or ..")
	}
	r.nodes[i].Entries = d.entries
	blocks, tail = d.pack.shape()
	return blocks, tail, nil
}

// dirReader reads the entries of one directory.
type dirReader struct {
	r       *reader
	dir     int32
	pack    dirPacker
	entries []Entry
	last    string
	started bool
	dots    int
}

// read reads the blocks of the given size between two offsets.
func (d *dirReader) read(at, end, size int64) error {
	for ; at < end; at += size {
		if err := d.readBlock(at, size); err != nil {
			return err
		}
	}
	return nil
}

func (d *dirReader) readBlock(at, size int64) error {
	b := d.r.b[at : at+size]
	if size < direntSize {
		return corrupt("directory block of %d bytes", size)
	}
	off := int(le.Uint16(b[8:])) // of the first name, after all entries
	count := off / direntSize
	if off%direntSize != 0 || count == 0 || off > len(b) {
		return corrupt("directory block has its first name at %d", off)
	}
	d.entries = slices.Grow(d.entries, count)
	for k := range count {
		e := b[k*direntSize:]
		end := len(b)
		if k+1 < count {
			end = int(le.Uint16(e[direntSize+8:]))
		} else if size == blockSize {
			// The last name of a block ends at the block's end or at a NUL.
			if n := strings.IndexByte(d.r.text[at+int64(off):at+size], 0); n >= 0 {
				end = off + n
			}
		}
		if int(le.Uint16(e[8:])) != off || end < off || end > len(b) || e[11] != 0 {
			return corrupt("directory entry %d of %d has a name at %d to %d", k, count, off, end)
		}
		name := d.r.text[at+int64(off) : at+int64(end)]
		off = end
		if fresh := d.pack.add(name); fresh != (k == 0 && d.started) {
			return corrupt("entry %q is in the wrong block", name)
		}
		if d.started && d.last >= name {
			return corrupt("entry %q not in order", name)
		}
		d.started = true
		d.last = name
		if err := d.entry(name, le.Uint64(e), e[10]); err != nil {
			return fmt.Errorf("entry %q: %w", name, err)
		}
	}
	return nil
}

func (d *dirReader) entry(name string, nid uint64, typ uint8) error {
	if nid > math.MaxInt64>>nidBits {
		return corrupt("inode %#x", nid)
	}
	pos := int64(nid) << nidBits
	self := &d.r.nodes[d.dir]
	switch name {
	case ".", "..":
		want := self.pos
		if name == ".." {
			want = d.r.nodes[self.parent].pos
		}
		if pos != want || typ != ftDir {
			return corrupt("at %d instead of %d", pos, want)
		}
		d.dots++
		return nil
	}
	if !validName(name) {
		return corrupt("invalid name")
	}
	c, err := d.r.reach(d.dir, pos, typ)
	if err != nil {
		return err
	}
	d.entries = append(d.entries, Entry{name, d.r.nodes[c].Inode})
	return nil
}

// readTable reads the shared attributes, between the inodes and the data.
func (r *reader) readTable() error {
	r.byOffset = make([]int32, (r.start-r.end)/4)
	pos := r.end
	for pos < r.start && le.Uint32(r.b[pos:]) != 0 {
		x, next, err := r.readXattr(pos, r.start)
		if err != nil {
			return err
		}
		if n := len(r.table); n > 0 {
			last := r.table[n-1]
			order := cmp.Or(cmp.Compare(r.attrNames[last.name].full, r.attrNames[x.name].full),
				compareValue(last.value, x.value))
			if order <= 0 {
				return corrupt("attribute at %d not in order", pos)
			}
		}
		r.table = append(r.table, x)
		r.byOffset[(pos-r.end)/4] = int32(len(r.table))
		pos = next
	}
	if roundUp(pos, blockSize) != r.start {
		return corrupt("table ends at %d, data begins at %d", pos, r.start)
	}
	return nil
}

// readXattr reads the attribute at pos and returns the offset after it.
func (r *reader) readXattr(pos, end int64) (x rawXattr, next int64, err error) {
	if end-pos < xattrEntrySize {
		return x, 0, corrupt("attribute at %d", pos)
	}
	b := r.b[pos:end]
	index := b[1]
	suffix := xattrEntrySize + int64(b[0])
	size := suffix + int64(le.Uint16(b[2:]))
	next = pos + roundUp(size, 4)
	if next > end {
		return x, 0, corrupt("attribute at %d ends at %d", pos, next)
	}
	x.name, err = r.intern(rawName{index, r.text[pos+xattrEntrySize : pos+suffix]})
	if err != nil {
		return x, 0, err
	}
	x.value = b[suffix:size:size]
	x.text = r.text[pos+suffix : pos+size]
	return x, next, nil
}

// intern returns the index of a name in r.attrNames.
func (r *reader) intern(raw rawName) (int32, error) {
	if id, ok := r.names[raw]; ok {
		return id, nil
	}
	n, err := newReadName(raw)
	if err != nil {
		return 0, err
	}
	id := int32(len(r.attrNames))
	r.names[raw] = id
	r.attrNames = append(r.attrNames, n)
	return id, nil
}

// readXattrs reads the attributes of an inode into r.scratch, sorted by name.
func (r *reader) readXattrs(n *inodeRecord) error {
	r.scratch = r.scratch[:0]
	if n.xattrSize == 0 {
		return nil
	}
	end := n.xattrPos + n.xattrSize
	body := r.b[n.xattrPos:end]
	filter := le.Uint32(body)
	shared := int(body[4])
	if shared > maxShared || xattrHeaderSize+4*shared > len(body) {
		return corrupt("%d shared attributes", shared)
	}
	for k := range shared {
		off := int64(le.Uint32(body[xattrHeaderSize+4*k:])) - r.end%blockSize/4
		if off < 0 || off >= int64(len(r.byOffset)) || r.byOffset[off] == 0 {
			return corrupt("no shared attribute at %d", off)
		}
		r.scratch = append(r.scratch, r.table[r.byOffset[off]-1])
	}
	for pos := n.xattrPos + xattrHeaderSize + 4*int64(shared); pos < end; {
		x, next, err := r.readXattr(pos, end)
		if err != nil {
			return err
		}
		r.scratch = append(r.scratch, x)
		pos = next
	}
	if shared > 0 && shared < len(r.scratch) {
		slices.SortFunc(r.scratch, func(a, b rawXattr) int {
			return cmp.Compare(r.attrNames[a.name].full, r.attrNames[b.name].full)
		})
	}
	want := ^uint32(0)
	for k, x := range r.scratch {
		want &^= r.attrNames[x.name].filter
		if k > 0 && r.attrNames[r.scratch[k-1].name].full >= r.attrNames[x.name].full {
			return corrupt("attribute %q not in order", r.attrNames[x.name].full)
		}
	}
	if filter != want || len(r.scratch) == 0 {
		return corrupt("name filter %#x of %d attributes", filter, len(r.scratch))
	}
	return nil
}
