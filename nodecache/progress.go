package nodecache

import (
	"fmt"
	"sync"
)

// Progress tells people how far an Acquire is; see [AcquireOptions]. The zero value is one
// that has not begun. Safe for concurrent use; not to be copied.
type Progress struct {
	mu   sync.Mutex
	tell func() string // GUARDED_BY(mu); nil: nothing to tell
}

// String is what is done at present, as "12 of 80 MiB are pulled"; it has no reference, and
// no words of a registry's.
func (p *Progress) String() string {
	p.mu.Lock()
	tell := p.tell
	p.mu.Unlock()
	if tell == nil {
		return "its registry has not been asked yet"
	}
	return tell()
}

// set is called where something begins that may take long. tell is called without locks
// of the store. Nil-safe.
func (p *Progress) set(tell func() string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell = tell
}

// amount is a part of a whole, in MiB, rounded down: 80 of 80 is the end.
func amount(have, size int64) string {
	return fmt.Sprintf("%d of %d MiB", have>>20, (size+1<<20-1)>>20)
}

// progress is what of the blob is on the node.
func (t *transfer) progress() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := amount(min(int64(t.have)*chunkSize, t.size), t.size) + " are pulled"
	if t.trouble != nil {
		text += ", and the registry fails at the moment"
	}
	return text
}

// progress is what of the layers has come, as the registry has them.
func (c *converting) progress() string {
	return amount(c.read.Load(), c.size) + " of its layers are pulled and converted"
}
