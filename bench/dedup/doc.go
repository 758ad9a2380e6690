// Package dedup measures the savings of each kind of deduplication for a set of images without storing any of them. It
// reads the tar of each layer once and keeps only hashes.
//
// # Kinds
//
// A [Kind] defines the unit that is kept once. From the least sharing to the most:
//
//	images     nothing: each image has all of its layers for itself
//	layers     a layer, by its diff ID: what containerd's snapshotters share
//	mtime      a file, if content, owner, mode, extended attributes and modification time are the same
//	metadata   a file, if content, owner, mode and extended attributes are: the content objects of ostree
//	content    a file, if its content is, as with composefs where the metadata are elsewhere
//	fixed128k  chunks of 128 KiB of a file's content, counted from its beginning; the last is shorter
//	fixed4k    chunks of 4 KiB
//	cdc64k     chunks that FastCDC cuts a file's content into, 64 KiB on average, at least 16 and at most 256
//
// All kinds count the content of regular files, so that they can be compared; a tar is longer because of its headers. A
// file is an inode: hard links inside a layer are one file in every kind. Layers are counted whole, as snapshotters
// keep them, including content that an upper layer hides. Files without content, symbolic links, devices and
// directories have nothing to share.
//
// Each kind has two figures: the bytes, and the bytes in blocks of 4 KiB, as on a file system where each file or chunk
// is a file of its own. Neither includes what a store needs beside content, such as directories, inodes and lists of
// chunks.
//
// For each image, a report has the amount that it adds to the images before it, in the given order.
//
// # How
//
// [layer.Scan] decides what a layer contains, by the rules of the store: of a name that occurs twice in a tar the last
// entry counts, and the header of a hard link changes the file. Content is hashed as a tree: 4 KiB, 128 KiB, file. The
// identity of a file with its metadata is the hash of the input of ostree's file checksum, so there are exactly as many
// identities as content objects in a repository with these layers.
//
// # Memory
//
// Hashes are kept as their first 16 bytes, with 4 bytes for the first image that has them. With the table around them,
// a distinct file or chunk takes 25 to 50 bytes. That is 1 % of the distinct content, nearly all of it for the chunks
// of 4 KiB. With 128 bits, 10^12 honest chunks have a chance of 1 in 10^15 of one collision. At most [MaxHashes] are
// kept.
//
// Reading a layer takes the memory of [layer.Scan], and 20 to 40 bytes for each chunk; [MaxContent] bounds them.
// [Options.Parallel] layers are read at once.
package dedup
