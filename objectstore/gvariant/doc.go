// Package gvariant encodes and decodes GVariant, the serialisation of ostree's metadata objects.
//
// It covers every type but double ("d" is carried, not interpreted) in little-endian byte order. The format is that
// of the GVariant specification; what ostree adds, such as big-endian integers inside, is its callers' affair.
//
// # Encoding
//
// Encoders append to a byte slice. A container is written member by member with [Pad] in between, and closed with
// the end offsets of its members by [AppendOffsets]; [AppendArray] does both for arrays. Offsets and padding count
// from the start of the container, so a container must begin at a multiple of its alignment, which Pad of the
// enclosing one ensures.
//
// # Decoding
//
// A [Type] takes serialised values apart: [Type.Members] and [Type.Elements] return subslices of the input and
// verify the framing of that one level, [Type.Check] verifies a whole value. Only normal form is accepted, the one
// serialisation that the encoder produces: minimal offsets, zero padding, strings of valid UTF-8 with exactly one
// NUL. A value that is not in normal form is [ErrNotNormal], whatever it is; no input makes a decoder panic. Decoding
// allocates nothing but the slices of members that it returns and, for each variant met by Check, the parsed type,
// whose size is bounded by 255 bytes of type string.
package gvariant
