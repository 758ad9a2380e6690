package inflate

import "encoding/binary"

func loadIn(in *[inMask + 1 + word]byte, i int) uint64 {
	i &= inMask
	return binary.LittleEndian.Uint64(in[i : i+word])
}

func load(out *[outMask + 1 + word]byte, i int) uint64 {
	i &= outMask
	return binary.LittleEndian.Uint64(out[i : i+word])
}

func store(out *[outMask + 1 + word]byte, i int, v uint64) {
	i &= outMask
	binary.LittleEndian.PutUint64(out[i:i+word], v)
}

// decode decodes symbols of a block until the block ends, out is full, or more input is needed.
func (r *Reader) decode() error {
	if err := r.need(headerSize); err != nil {
		return err
	}
	lastIn := r.end - inSlack
	if r.srcErr != nil {
		lastIn = r.end + 8 // zeros, up to the end of any symbol
	}
	// Only the lowest six bits of n count: an entry is subtracted as a whole, and what it has above them is noise. The entry
	// of the next symbol is loaded before what came before it is copied.
	var (
		in    = &r.in
		out   = &r.out
		bits  = r.bits
		n     = r.n
		pos   = r.pos
		o     = r.write
		start = r.start
	)
	ended, valid := false, true
	bits |= loadIn(in, pos) << (n & 63)
	pos += int(^n & 63 >> 3)
	n |= 56
	e := r.lit[bits&(1<<litBits-1)]
	for pos <= lastIn && o < outLimit {
		// There are 56 bits at least, and e is the entry for the first of them.
		if e&literal != 0 {
			bits >>= e & takesMask
			n -= uint(e)
			out[o&outMask] = byte(e >> valueShift)
			o++
			e = r.lit[bits&(1<<litBits-1)]
			if e&literal != 0 {
				bits >>= e & takesMask
				n -= uint(e)
				out[o&outMask] = byte(e >> valueShift)
				o++
				e = r.lit[bits&(1<<litBits-1)]
				if e&literal != 0 {
					bits >>= e & takesMask
					n -= uint(e)
					out[o&outMask] = byte(e >> valueShift)
					o++
					e = r.lit[bits&(1<<litBits-1)]
					bits |= loadIn(in, pos) << (n & 63)
					pos += int(^n & 63 >> 3)
					n |= 56
					continue
				}
			}
		}
		if e&exceptional != 0 {
			if e&subtable != 0 {
				bits >>= e & takesMask
				n -= uint(e)
				e = r.lit[(e>>valueShift+uint32(bits)&(1<<(e>>codeShift&codeMask)-1))&(1<<12-1)]
				if e&literal != 0 {
					bits >>= e & takesMask
					n -= uint(e)
					out[o&outMask] = byte(e >> valueShift)
					o++
					bits |= loadIn(in, pos) << (n & 63)
					pos += int(^n & 63 >> 3)
					n |= 56
					e = r.lit[bits&(1<<litBits-1)]
					continue
				}
			}
			if e&exceptional != 0 {
				if e&blockEnd != 0 {
					bits >>= e & takesMask
					n -= uint(e)
					ended = true
				} else {
					valid = false
				}
				break
			}
		}
		length := int(e>>valueShift) + int(bits&(1<<(e&takesMask)-1)>>(e>>codeShift&codeMask))
		bits >>= e & takesMask
		n -= uint(e)
		if n&63 < 28 {
			bits |= loadIn(in, pos) << (n & 63)
			pos += int(^n & 63 >> 3)
			n |= 56
		}
		e = r.dist[bits&(1<<distBits-1)]
		if e&exceptional != 0 {
			if e&subtable == 0 {
				valid = false
				break
			}
			bits >>= e & takesMask
			n -= uint(e)
			e = r.dist[(e>>valueShift+uint32(bits)&(1<<(e>>codeShift&codeMask)-1))&(1<<10-1)]
			if e&exceptional != 0 {
				valid = false
				break
			}
		}
		d := int(e>>valueShift) + int(bits&(1<<(e&takesMask)-1)>>(e>>codeShift&codeMask))
		bits >>= e & takesMask
		n -= uint(e)
		if d > o-start {
			valid = false
			break
		}
		bits |= loadIn(in, pos) << (n & 63)
		pos += int(^n & 63 >> 3)
		n |= 56
		e = r.lit[bits&(1<<litBits-1)]
		from, end := o-d, o+length
		switch {
		case d >= 8:
			store(out, o, load(out, from))
			store(out, o+8, load(out, from+8)) // of what was just stored, if d is below 16
			for o += 16; o < end; o += 16 {
				from += 16
				store(out, o, load(out, from))
				store(out, o+8, load(out, from+8))
			}
		case d == 1:
			v := uint64(out[from&outMask]) * 0x0101010101010101
			for ; o < end; o += 8 {
				store(out, o, v)
			}
		default:
			// A word has d bytes that are there already, and others that the next word replaces.
			for ; o < end; o += d {
				store(out, o, load(out, from))
				from += d
			}
		}
		o = end
	}
	r.bits, r.n, r.pos = bits, n&63, pos
	switch {
	case !valid:
		return r.corrupt()
	case r.overrun():
		return r.ended()
	}
	r.write = o
	if ended {
		r.next = (*Reader).block
	}
	return nil
}
