// Package composefs writes and reads the metadata images of composefs: small EROFS file systems that hold every inode
// of a tree but no file data. A regular file has an overlayfs redirect to an object of the store instead. Mounted below
// an object directory,
//
//	mount -t erofs -o ro image /mnt/image
//	mount -t overlay -o ro,metacopy=on,redirect_dir=on,lowerdir=/mnt/image::/repo/objects overlay /mnt/tree
//
// an image is the whole tree: one mount, no work for each file, and the page cache of an object is shared by all trees
// that have it.
//
// # Canonical form
//
// An image has exactly one encoding, that of libcomposefs (composefs 1.x, lcfs-writer-erofs.c). The same tree gives the
// same bytes everywhere, so ostree can name an image by its fs-verity digest, and this project a layer by the digest of
// its image. The form is
//
//	   0  header        magic, header version 1, flags, composefs version 0 or 1
//	1024  superblock    blocks of 4096 bytes, features MTIME and XATTR_FILTER
//	1152  inodes        breadth first, children in bytewise order of their names;
//	                    each with its attributes and the tail of its data
//	      shared xattrs each pair of name and value that several inodes have
//	n<<12 data blocks   of directories, long symlinks, inline content
//
// and before layout the tree is rewritten for overlayfs:
//
//   - trusted.overlay.X becomes trusted.overlay.overlay.X;
//   - a file with data gets trusted.overlay.metacopy, which holds its fs-verity digest if it has one, and
//     trusted.overlay.redirect, the path of its object;
//   - a whiteout becomes an empty file with two marks, and its directory is marked too; an opaque directory of the
//     layer itself remains an extended attribute;
//   - the root becomes opaque and gets 256 character devices 0:0 named 00 to ff, so that the directories of the object
//     store do not show through.
//
// [Marshal] does all this and [Read] reverses it, including hard links, whiteouts and nanoseconds. [WriteDump] writes
// the text form of composefs-dump(5). [VerityDigest] returns the digest that the kernel would report.
//
// # Why this package has its own reader
//
// github.com/erofs/go-erofs (0.3.1) reads any EROFS image through io/fs, which is another task. It resolves a path from
// the root for each stat (12,000 inodes: 50 times the time of Read and 45 times the memory), collapses duplicate
// attributes into a map, cannot read a shared attribute across a block boundary, calls an ACL system.posix_acl_access.
// with a dot, and does not report that two directories are the same or that inodes overlap. Read relies on the single
// layout of a canonical image and rejects everything else, which also bounds the cost of a hostile image. go-erofs
// remains the second opinion in the tests, next to the kernel, fsck.erofs and testdata/cfsw.py.
package composefs
