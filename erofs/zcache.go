package erofs

import (
	"sync"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// DecodedCache keeps what physical clusters decode to, for readers that want a
// part of one now and the rest soon: in small steps, or small files that lie
// together in one. It has the least recently used ones go first, and is safe
// for concurrent use by any number of images.
//
// It holds at most the bytes it was made for, in buffers of powers of two, and
// those of reads under way: for each at most two pclusters, of 16 MiB decoded
// and 2 MiB compressed if an image has such.
//
// A cluster is decoded only as far as somebody wanted it. Two readers of one
// cluster decode it once: the second waits for the first.
type DecodedCache struct {
	mu      sync.Mutex
	entries map[zKey]*zEntry // GUARDED_BY(mu)
	newest  *zEntry          // of a ring in order of use; nil: it is empty; GUARDED_BY(mu)
	bytes   int64            // 0 <= bytes <= most, but while an entry grows; GUARDED_BY(mu)
	most    int64
}

// defaultDecodedCache is the size of defaultDecoded in bytes: some readers each
// of the largest pclusters, or thousands of the smallest.
const defaultDecodedCache = 32 << 20

var defaultDecoded = NewDecodedCache(defaultDecodedCache)

// NewDecodedCache makes a cache of at most the given number of bytes. With 0 it
// keeps nothing.
func NewDecodedCache(bytes int64) *DecodedCache {
	return &DecodedCache{entries: make(map[zKey]*zEntry), most: bytes}
}

// zKey names a pcluster among those of all images.
type zKey struct {
	image    uint64 // Image.id
	pa, plen int64
	kind     zKind
	metabox  bool // pa is an address in the metabox, not in the primary device
}

// zEntry is a pcluster that is decoded, or as far as it was wanted.
//
// LOCK ORDER: zEntry.mu before DecodedCache.mu; never two entries.
type zEntry struct {
	key zKey

	// Of DecodedCache.
	users      int     // GUARDED_BY(DecodedCache.mu)
	cached     bool    // it is in entries; GUARDED_BY(DecodedCache.mu)
	size       int64   // bytes accounted; GUARDED_BY(DecodedCache.mu)
	prev, next *zEntry // GUARDED_BY(DecodedCache.mu)

	mu  sync.RWMutex
	buf *zBuffer // GUARDED_BY(mu)
	n   int64    // bytes of buf that are good; GUARDED_BY(mu)
	src *zBuffer // holds the compressed data while dec is started; GUARDED_BY(mu)
	dec zDecoder // GUARDED_BY(mu)
}

// acquire returns the entry of a pcluster, made if create is set, else nil where
// there is none. The caller releases it.
func (c *DecodedCache) acquire(key zKey, create bool) *zEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		if !create {
			return nil
		}
		e = &zEntry{key: key}
		if c.most > 0 {
			e.cached = true
			c.entries[key] = e
		}
	}
	if e.cached {
		c.unlink(e)
		c.link(e)
	}
	e.users++
	return e
}

// release lets go of an entry. drop takes it out of the cache, so that the next
// reader begins anew. The caller must not hold e.mu.
func (c *DecodedCache) release(e *zEntry, drop bool) {
	var idle []*zEntry
	c.mu.Lock()
	if drop {
		idle = c.remove(e, idle)
	}
	if e.users--; e.users == 0 && !e.cached {
		idle = append(idle, e)
	}
	c.mu.Unlock()
	for _, e := range idle {
		e.free()
	}
}

// account sets the bytes that an entry in use takes and makes room for them.
func (c *DecodedCache) account(e *zEntry, size int64) {
	var idle []*zEntry
	c.mu.Lock()
	if e.cached {
		c.bytes += size - e.size
		e.size = size
		for c.bytes > c.most && c.newest != nil {
			idle = c.remove(c.newest.prev, idle) // the oldest, maybe e
		}
	}
	c.mu.Unlock()
	for _, e := range idle {
		e.free()
	}
}

// remove takes an entry out of the cache, and adds it to idle if nobody uses it.
// c.mu is held.
func (c *DecodedCache) remove(e *zEntry, idle []*zEntry) []*zEntry {
	if !e.cached {
		return idle
	}
	e.cached = false
	delete(c.entries, e.key)
	c.unlink(e)
	c.bytes -= e.size
	if e.users == 0 {
		idle = append(idle, e)
	}
	return idle
}

// link makes e the newest. c.mu is held.
func (c *DecodedCache) link(e *zEntry) {
	if c.newest == nil {
		e.prev, e.next = e, e
	} else {
		e.next, e.prev = c.newest, c.newest.prev
		e.prev.next, e.next.prev = e, e
	}
	c.newest = e
}

// unlink takes e out of the ring, if it is there. c.mu is held.
func (c *DecodedCache) unlink(e *zEntry) {
	if e.next == nil {
		return
	}
	if c.newest == e {
		c.newest = e.next
	}
	if e.next == e {
		c.newest = nil
	}
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}

// free gives back the buffers of an entry that nobody can reach any more.
func (e *zEntry) free() {
	e.dec.stop()
	for _, buf := range []*zBuffer{e.buf, e.src} {
		if buf != nil {
			buf.put()
		}
	}
	e.buf, e.src = nil, nil
}

// copy copies the decoded bytes from off on, if all that dst has room for are
// there.
func (e *zEntry) copy(dst []byte, off int64) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if off+int64(len(dst)) > e.n {
		return false
	}
	copy(dst, e.buf.b[off:])
	return true
}

// zStep is how far a pcluster is decoded beyond what is wanted, to a multiple of
// so many bytes.
const zStep = 16 << 10

// fill decodes up to byte need of the total of extent x, 0 < need <= total. src
// is its compressed data; nil, with which ok is false unless the entry can go on
// without. e.mu is held.
//
// Errors: of the codec, or errShort. The entry is then to be dropped.
func (e *zEntry) fill(x *zExtent, need int64, src []byte) (ok bool, err error) {
	if need <= e.n {
		return true, nil
	}
	total := x.end - x.la
	need = min(roundUp(need, zStep), total)
	if !e.dec.started() {
		if src == nil {
			return false, nil
		}
		e.n = 0
		if zResumable(x) && need < total {
			e.src = getBuffer(int64(len(src)))
			copy(e.src.b, src)
			src = e.src.b
		}
		if err := e.dec.start(x.kind, src, x.partial); err != nil {
			return false, err
		}
	}
	if !zResumable(x) {
		need = total
	}
	e.grow(need, total)
	n, err := e.dec.decode(e.buf.b[:need], int(e.n))
	if err == nil && int64(n) < need {
		err = errShort
	}
	if err != nil {
		return false, err
	}
	if e.n = need; need == total {
		e.dec.stop()
		if e.src != nil {
			e.src.put()
			e.src = nil
		}
	}
	return true, nil
}

// grow makes room for size bytes, and for total the first time. e.mu is held.
func (e *zEntry) grow(size, total int64) {
	if e.buf != nil && int64(cap(e.buf.b)) >= size {
		return
	}
	buf := getBuffer(total)
	if e.buf != nil {
		copy(buf.b, e.buf.b[:e.n])
		e.buf.put()
	}
	e.buf = buf
	e.buf.b = e.buf.b[:cap(e.buf.b)]
}

// held is how many bytes the entry's buffers have. e.mu is held.
func (e *zEntry) held() (n int64) {
	for _, buf := range []*zBuffer{e.buf, e.src} {
		if buf != nil {
			n += int64(cap(buf.b))
		}
	}
	return n
}

const _ = uint(1<<zBufferMaxBits - disk.PclusterMaxDecoded) // every extent fits in a buffer
