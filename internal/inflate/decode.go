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
	var (
		in   = &r.in
		out  = &r.out
		bits = r.bits
		n    = r.n
		pos  = r.pos
		o    = r.write
	)
	ended, valid := false, true
	for pos <= lastIn && o < outLimit {
		bits |= loadIn(in, pos) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56
		e := r.lit[bits&(1<<litBits-1)]
		if e&literal != 0 {
			bits >>= e & takesMask
			n -= uint(e & takesMask)
			out[o&outMask] = byte(e >> valueShift)
			o++
			e = r.lit[bits&(1<<litBits-1)]
			if e&literal != 0 {
				bits >>= e & takesMask
				n -= uint(e & takesMask)
				out[o&outMask] = byte(e >> valueShift)
				o++
				e = r.lit[bits&(1<<litBits-1)]
				if e&literal != 0 {
					bits >>= e & takesMask
					n -= uint(e & takesMask)
					out[o&outMask] = byte(e >> valueShift)
					o++
					continue
				}
			}
		}
		if e&exceptional != 0 {
			if e&subtable != 0 {
				bits >>= e & takesMask
				n -= uint(e & takesMask)
				e = r.lit[(e>>valueShift+uint32(bits)&(1<<(e>>codeShift&codeMask)-1))&(1<<12-1)]
				if e&literal != 0 {
					bits >>= e & takesMask
					n -= uint(e & takesMask)
					out[o&outMask] = byte(e >> valueShift)
					o++
					continue
				}
			}
			if e&exceptional != 0 {
				if e&blockEnd != 0 {
					bits >>= e & takesMask
					n -= uint(e & takesMask)
					ended = true
				} else {
					valid = false
				}
				break
			}
		}
		length := int(e>>valueShift) + int(bits&(1<<(e&takesMask)-1)>>(e>>codeShift&codeMask))
		bits >>= e & takesMask
		n -= uint(e & takesMask)
		if n < 28 {
			bits |= loadIn(in, pos) << (n & 63)
			pos += int((63 - n) >> 3)
			n |= 56
		}
		e = r.dist[bits&(1<<distBits-1)]
		if e&exceptional != 0 {
			if e&subtable == 0 {
				valid = false
				break
			}
			bits >>= e & takesMask
			n -= uint(e & takesMask)
			e = r.dist[(e>>valueShift+uint32(bits)&(1<<(e>>codeShift&codeMask)-1))&(1<<10-1)]
			if e&exceptional != 0 {
				valid = false
				break
			}
		}
		d := int(e>>valueShift) + int(bits&(1<<(e&takesMask)-1)>>(e>>codeShift&codeMask))
		bits >>= e & takesMask
		n -= uint(e & takesMask)
		if d > o-r.start {
			valid = false
			break
		}
		from, end := o-d, o+length
		switch {
		case d >= 16:
			for {
				a, b := load(out, from), load(out, from+8)
				store(out, o, a)
				store(out, o+8, b)
				from += 16
				if o += 16; o >= end {
					break
				}
			}
		case d >= 8:
			for ; o < end; o += 8 {
				store(out, o, load(out, from))
				from += 8
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
	r.bits, r.n, r.pos = bits, n, pos
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
