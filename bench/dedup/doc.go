// Package dedup measures what each kind of deduplication saves for a set of images, without storing any of them: it reads
// the tars of their layers, each once, and keeps nothing but hashes.
//
// # Kinds
//
// A [Kind] is an answer to the question what is kept once. From what shares least to what shares most:
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
// All count the content of regular files, so that they can be compared: a tar is longer, by its headers. A file is an
// inode: in every kind, hard links inside a layer are one file. Layers are whole, as snapshotters keep them: what an upper
// layer hides counts. Files without content, symbolic links, devices and directories have nothing to share.
//
// Of each kind there are two figures, the bytes, and those bytes in blocks of 4 KiB, as a file system has them if each
// file, or each chunk, is a file of its own. What a store needs beside content, as directories, inodes and the lists of
// chunks, is in neither.
//
// For each image a report says what it adds to those before it, in the order given.
//
// # How
//
// What a layer consists of is decided by [layer.Scan], by the rules of the store: of a name that a tar has twice the last
// one counts, and the header of a hard link changes the file. Content is hashed as a tree: 4 KiB, 128 KiB, file. The
// identity of a file with its metadata is the hash of what ostree's file checksum covers, so there are exactly as many as
// there are content objects in a repository with these layers.
//
// # Memory
//
// Hashes are kept as their first 16 bytes, with 4 bytes that say which image has it first: with the table around
// them it is 25 to 50 bytes for each distinct file and chunk, which is 1 % of the content that is distinct, nearly all of it
// for the chunks of 4 KiB. With 128 bits, 10^12 honest chunks have a chance of 1 in 10^15 to be wrong once. At most
// [MaxHashes] are kept.
//
// A layer that is being read takes what [layer.Scan] does, and 20 to 40 bytes for each chunk; [MaxContent] bounds them.
// [Options.Parallel] layers are read at once.
package dedup
