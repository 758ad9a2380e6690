package inflate

import (
	"bytes"
	"math/bits"
)

const (
	maxLit  = 288 // symbols of literals and lengths
	maxDist = 32
	maxPre  = 19 // symbols of the lengths of codes
	maxCode = 15 // bits

	litBits  = 11
	distBits = 8
	preBits  = 7
)

// An entry of a table has, from its lowest bit:
//
//	6 bits  the number of bits that the symbol takes, with its extra bits
//	4 bits  from the 8th: the number of bits of the code alone; of a subtable, the number of bits that index it
//	3 flags from the 13th: end of the block, a subtable, either of these or invalid
//	15 bits from the 16th: the literal, the base of a length or distance, or where the subtable begins
//	1 flag  the 31st: a literal
const (
	takesMask   = 63
	codeShift   = 8
	codeMask    = 15
	blockEnd    = 1 << 13
	subtable    = 1 << 14
	exceptional = 1 << 15
	valueShift  = 16
	literal     = 1 << 31
)

// Entries of the symbols without their codes.
var (
	litSymbols  [maxLit]uint32
	distSymbols [maxDist]uint32
	preSymbols  [maxPre]uint32
)

func init() {
	for i := range 256 {
		litSymbols[i] = literal | uint32(i)<<valueShift
	}
	litSymbols[256] = exceptional | blockEnd
	base := uint32(3)
	for i := range uint32(28) {
		extra := max(i, 4)/4 - 1
		litSymbols[257+i] = base<<valueShift | extra
		base += 1 << extra
	}
	litSymbols[285] = 258 << valueShift
	litSymbols[286], litSymbols[287] = exceptional, exceptional
	base = 1
	for i := range uint32(30) {
		extra := max(i, 2)/2 - 1
		distSymbols[i] = base<<valueShift | extra
		base += 1 << extra
	}
	distSymbols[30], distSymbols[31] = exceptional, exceptional
	for i := range uint32(maxPre) {
		preSymbols[i] = i << valueShift
	}
}

// build makes the table of a code, given the lengths of its symbols. It reports whether the code is complete, or has no
// code at all or a single one of one bit, as Go's flate and zlib allow it.
func build(table []uint32, tableBits int, lengths []uint8, symbols []uint32) bool {
	var count, next [maxCode + 1]int
	for _, n := range lengths {
		count[n]++
	}
	longest := maxCode
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	code := 0
	for n := 1; n <= longest; n++ {
		code = code<<1 + count[n]
	}
	if code != 1<<longest {
		empty := longest == 0
		if !empty && (code != 1 || longest != 1) {
			return false
		}
		table[0], table[1] = exceptional, exceptional
		if !empty {
			table[0] = symbols[bytes.IndexByte(lengths, 1)] + 1 + 1<<codeShift
		}
		double(table, 1, tableBits)
		return true
	}

	// The symbols in the order of their codes.
	offset := 0
	count[0] = 0
	for n := 1; n <= longest; n++ {
		next[n] = offset
		offset += count[n]
	}
	var sorted [maxLit]uint16
	for s, n := range lengths {
		if n > 0 {
			sorted[next[n]] = uint16(s)
			next[n]++
		}
	}

	// Codes up to tableBits: the table is as large as the longest code so far needs, and then doubled.
	at := 0
	code = 0
	for n := 1; n <= min(longest, tableBits); n++ {
		half := 1 << (n - 1)
		copy(table[half:2*half], table[:half])
		code <<= 1
		for range count[n] {
			table[bits.Reverse16(uint16(code))>>(16-n)] = symbols[sorted[at]] + uint32(n) + uint32(n)<<codeShift
			code++
			at++
		}
	}
	double(table, longest, tableBits)

	// Longer ones: those with the same first tableBits bits share a subtable, which the longest of them determines.
	prefix, begin, subBits := -1, 1<<tableBits, 0
	size := begin
	for n := tableBits + 1; n <= longest; n++ {
		code <<= 1
		for i := range count[n] {
			reversed := int(bits.Reverse16(uint16(code)) >> (16 - n))
			if p := reversed & (1<<tableBits - 1); p != prefix {
				prefix, begin, subBits = p, size, n-tableBits
				for used := count[n] - i; used < 1<<subBits; {
					subBits++
					used = used<<1 + count[tableBits+subBits]
				}
				size = begin + 1<<subBits
				table[p] = exceptional | subtable | uint32(tableBits) | uint32(subBits)<<codeShift | uint32(begin)<<valueShift
			}
			short := n - tableBits
			entry := symbols[sorted[at]] + uint32(short) + uint32(short)<<codeShift
			for j := reversed >> tableBits; j < 1<<subBits; j += 1 << short {
				table[begin+j] = entry
			}
			code++
			at++
		}
	}
	return true
}

// double repeats the first 1<<have entries of a table until there are 1<<want.
func double(table []uint32, have, want int) {
	for n := have; n < want; n++ {
		copy(table[1<<n:2<<n], table[:1<<n])
	}
}

// fixed makes the tables of a block with the fixed codes, unless the last block had them too: a block may be as short as
// ten bits.
func (r *Reader) fixed() {
	if r.isFixed {
		return
	}
	r.isFixed = true
	for i := range maxLit {
		n := uint8(8)
		switch {
		case i >= 144 && i < 256:
			n = 9
		case i >= 256 && i < 280:
			n = 7
		}
		r.lengths[i] = n
	}
	build(r.lit[:], litBits, r.lengths[:maxLit], litSymbols[:])
	for i := range maxDist {
		r.lengths[i] = 5
	}
	build(r.dist[:], distBits, r.lengths[:maxDist], distSymbols[:])
}

// preOrder is the order of the lengths of the codes of lengths.
var preOrder = [maxPre]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block, and makes its tables.
func (r *Reader) dynamic() error {
	r.isFixed = false
	lits := int(r.take(5)) + 257
	dists := int(r.take(5)) + 1
	pres := int(r.take(4)) + 4
	if lits > 286 || dists > 30 {
		return r.corrupt()
	}
	var pre [maxPre]uint8
	for _, s := range preOrder[:pres] {
		pre[s] = uint8(r.take(3))
	}
	if !build(r.pre[:], preBits, pre[:], preSymbols[:]) {
		return r.corrupt()
	}
	lengths := r.lengths[:lits+dists]
	for i := 0; i < len(lengths); {
		if r.n < preBits+7 {
			r.refill()
		}
		e := r.pre[r.bits&(1<<preBits-1)]
		if e&exceptional != 0 {
			return r.corrupt()
		}
		r.bits >>= e & takesMask
		r.n -= uint(e & takesMask)
		symbol := uint8(e >> valueShift)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		var n int
		var length uint8
		switch symbol {
		case 16:
			if i == 0 {
				return r.corrupt()
			}
			length = lengths[i-1]
			n = 3 + int(r.take(2))
		case 17:
			n = 3 + int(r.take(3))
		default:
			n = 11 + int(r.take(7))
		}
		if i+n > len(lengths) {
			return r.corrupt()
		}
		for range n {
			lengths[i] = length
			i++
		}
	}
	if !build(r.lit[:], litBits, lengths[:lits], litSymbols[:]) || !build(r.dist[:], distBits, lengths[lits:], distSymbols[:]) {
		return r.corrupt()
	}
	return nil
}
