// Package boltcheck checks the pages of a bbolt database. bbolt itself maps the file and trusts its content: a damaged
// page leads it beyond the end of the file, or in circles, and crashes the process. This package reads bytes.
package boltcheck

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"os"
)

// The format of bbolt's files, version 2, in the machine's byte order.
const (
	magic   = 0xED0CDAED
	version = 2

	headerSize  = 16 // of a page: id, flags, count, overflow
	elementSize = 16 // in a branch or leaf page
	bucketSize  = 16 // of a bucket in a leaf: root, sequence
	metaSize    = 64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	bucketLeaf = 0x01

	noFreelist = math.MaxUint64
	manyFree   = math.MaxUint16 // count of a freelist that starts with its real count
)

var order = binary.NativeEndian

// Check returns the damage to a database, nil if bbolt can read all of it and write to it: every reachable page is
// reachable in one way and not free, and every bucket is in order. Pages neither in use nor free are wasted, not
// damaged.
func Check(data []byte) error {
	m, err := newestMeta(data)
	if err != nil {
		return err
	}
	c := &checker{data: data, meta: m, state: make(map[uint64]string)}
	if m.pages < 2 || m.pages > uint64(len(data))/m.pageSize {
		return fmt.Errorf("database has %d pages, file has %d bytes", m.pages, len(data))
	}
	if m.freelist != noFreelist {
		if err := c.free(); err != nil {
			return err
		}
	}
	return c.page(m.root, &tree{}, nil)
}

type meta struct{ pageSize, root, freelist, pages, txid uint64 }

// newestMeta returns the newer valid one of the two meta pages.
func newestMeta(data []byte) (*meta, error) {
	first := parseMeta(data, 0)
	second := uint64(os.Getpagesize())
	if first != nil {
		second = first.pageSize
	}
	switch m := parseMeta(data, second); {
	case m != nil && m.pageSize == second && (first == nil || m.txid > first.txid):
		return m, nil
	case first == nil:
		return nil, errors.New("no valid meta page")
	}
	return first, nil
}

func parseMeta(data []byte, at uint64) *meta {
	if uint64(len(data)) < at+headerSize+metaSize {
		return nil
	}
	b := data[at+headerSize:][:metaSize]
	sum := fnv.New64a()
	sum.Write(b[:56])
	if order.Uint32(b) != magic || order.Uint32(b[4:]) != version || order.Uint64(b[56:]) != sum.Sum64() {
		return nil
	}
	m := &meta{
		pageSize: uint64(order.Uint32(b[8:])), root: order.Uint64(b[16:]), freelist: order.Uint64(b[32:]),
		pages: order.Uint64(b[40:]), txid: order.Uint64(b[48:]),
	}
	if m.pageSize < 512 {
		return nil
	}
	return m
}

type checker struct {
	data  []byte
	meta  *meta
	state map[uint64]string // use of each visited page
}

// take returns the bytes of a page not visited before, including its overflow pages.
func (c *checker) take(id uint64, what string) ([]byte, error) {
	if id < 2 || id >= c.meta.pages {
		return nil, fmt.Errorf("page %d of %d", id, c.meta.pages)
	}
	b := c.data[id*c.meta.pageSize:]
	if got := order.Uint64(b); got != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	n := uint64(order.Uint32(b[12:])) + 1
	if id+n > c.meta.pages {
		return nil, fmt.Errorf("page %d has %d pages behind it", id, n-1)
	}
	for i := id; i < id+n; i++ {
		if err := c.mark(i, what); err != nil {
			return nil, err
		}
	}
	return b[:n*c.meta.pageSize], nil
}

func (c *checker) mark(id uint64, what string) error {
	if was, ok := c.state[id]; ok {
		return fmt.Errorf("page %d is %s and %s", id, was, what)
	}
	c.state[id] = what
	return nil
}

func flags(b []byte) uint16 { return order.Uint16(b[8:]) }
func count(b []byte) uint64 { return uint64(order.Uint16(b[10:])) }

// free reads the list of free pages.
func (c *checker) free() error {
	b, err := c.take(c.meta.freelist, "the freelist")
	if err != nil {
		return err
	}
	if flags(b) != freelistPage {
		return fmt.Errorf("page %d is no freelist", c.meta.freelist)
	}
	n := count(b)
	b = b[headerSize:]
	if n == manyFree {
		n = order.Uint64(b)
		b = b[8:]
	}
	if n > uint64(len(b))/8 {
		return fmt.Errorf("freelist has %d pages in %d bytes", n, len(b))
	}
	for i := range n {
		id := order.Uint64(b[i*8:])
		if id < 2 || id >= c.meta.pages {
			return fmt.Errorf("free page %d of %d", id, c.meta.pages)
		}
		if err := c.mark(id, "free"); err != nil {
			return err
		}
	}
	return nil
}

// tree is a bucket being walked in order.
type tree struct{ last []byte } // key; nil before the first

// page checks a page and those below it, whose keys must not be lower than first. It ends, since no page is visited
// twice.
func (c *checker) page(id uint64, t *tree, first []byte) error {
	b, err := c.take(id, "in use")
	if err != nil {
		return err
	}
	if err := c.elements(b, t, first); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks the elements of a page; b is the whole page.
func (c *checker) elements(b []byte, t *tree, first []byte) error {
	n, branch := count(b), flags(b) == branchPage
	if !branch && flags(b) != leafPage {
		return fmt.Errorf("flags %#x", flags(b))
	}
	if n > (uint64(len(b))-headerSize)/elementSize || branch && n == 0 {
		return fmt.Errorf("%d elements in %d bytes", n, len(b))
	}
	for i := range n {
		e := b[headerSize+i*elementSize:]
		pos, size, value := uint64(order.Uint32(e)), uint64(order.Uint32(e[4:])), uint64(0)
		if !branch {
			pos, size, value = size, uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
		}
		if pos+size+value > uint64(len(e)) {
			return fmt.Errorf("element %d is behind the end", i)
		}
		key := e[pos:][:size]
		if t.last != nil && bytes.Compare(t.last, key) >= 0 || bytes.Compare(key, first) < 0 {
			return fmt.Errorf("key %d is not in order", i)
		}
		if branch {
			if err := c.page(order.Uint64(e[8:]), t, key); err != nil {
				return err
			}
			continue
		}
		t.last = key
		if order.Uint32(e)&bucketLeaf != 0 {
			if err := c.bucket(e[pos+size:][:value]); err != nil {
				return fmt.Errorf("bucket %q: %w", key, err)
			}
		}
	}
	return nil
}

// bucket checks a bucket. A small bucket is a page inside the value.
func (c *checker) bucket(b []byte) error {
	if len(b) < bucketSize {
		return fmt.Errorf("%d bytes", len(b))
	}
	if root := order.Uint64(b); root != 0 {
		return c.page(root, &tree{}, nil)
	}
	if b = b[bucketSize:]; len(b) < headerSize {
		return fmt.Errorf("%d bytes in place", len(b))
	}
	return c.elements(b, &tree{}, nil)
}
