package share

import (
	"fmt"
	"sync/atomic"
	"time"
)

// slowAfter is how long none of the reads under way of an image may end before other
// images are asked. A disk that works answers within a tenth of it.
const slowAfter = time.Second

// pace tells whether an image answers.
type pace struct {
	reading atomic.Int32 // reads under way
	moved   atomic.Int64 // when one of them began alone or one ended, in ns since 1970
	told    atomic.Bool  // that it is slow
}

func (p *pace) begin() {
	if p.reading.Add(1) == 1 {
		p.moved.Store(time.Now().UnixNano())
	}
}

func (p *pace) end() {
	p.moved.Store(time.Now().UnixNano())
	p.reading.Add(-1)
	if p.told.Load() {
		p.told.Store(false)
	}
}

// slow tells whether nothing has come of reads under way for slowAfter.
func (p *pace) slow() bool {
	return p.reading.Load() > 0 && time.Now().UnixNano()-p.moved.Load() > int64(slowAfter)
}

// readFaster reads from an image that is not slow, unlike that of the source; ok is
// false when there is none. A read that is under way stays with its image, and the
// source is what it was: the next read after the image has answered takes it again.
func (in Inode) readFaster(p []byte, off int64, slow *Member) (n int, err error, ok bool) {
	id, known := in.identity()
	if !known {
		return 0, nil, false
	}
	for _, b := range in.domain.backings(&id) {
		if b.member == slow || b.bad || b.member.pace.slow() {
			continue
		}
		if n, err = b.read(p, off); err == nil || isEnd(err) {
			if slow.pace.told.CompareAndSwap(false, true) && in.domain.onFailure != nil {
				in.domain.onFailure(in, fmt.Errorf("image %s has not answered for %v", slow.tag, slowAfter))
			}
			return n, err, true
		}
	}
	return 0, nil, false
}
