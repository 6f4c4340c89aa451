package erofs

import (
	"sync"
	"sync/atomic"

	"github.com/erofs-csi/erofs-csi/erofs/internal/lz4"
)

const (
	// zWindow is the length of a stream's window: the history of a match, and
	// three times as much, so that moving the history costs little.
	zWindow = 4 << 16
	// zHistory is the part of it that is moved.
	zHistory = 1 << 16
	// zKeepMin is how many decoded bytes are worth keeping a stream for: their
	// decoding takes about as long as reading a block from a fast device.
	zKeepMin = 32 << 10
	// zKeptStreams bounds the memory of kept streams of all images: one has at
	// most a window and zReadMax, so that all have 20 MiB, in images with
	// pclusters of 64 KiB 5 MiB.
	zKeptStreams = 16
)

// zKey names a pcluster among those of all images.
type zKey struct {
	image    uint64 // Image.id
	pa, plen int64
}

// slot is where in zKept the stream of the pcluster is, if anywhere.
func (k zKey) slot() *atomic.Pointer[zStream] {
	h := (uint64(k.pa)>>9 + k.image) * 0x9e3779b97f4a7c15
	return &zKept[h>>32%zKeptStreams]
}

// zStream decodes a pcluster piece by piece from its start. It has one owner
// at a time: a call of readCompressed, or zKept.
//
//	0 <= at <= zWindow, at <= pos, at >= min(pos, lz4.MaxDistance)
type zStream struct {
	key    zKey
	own    *zBuffer // holds src; nil: src is the caller's
	src    []byte   // the LZ4 block
	state  lz4.State
	pos    int64 // bytes of the pcluster decoded so far
	at     int   // the last of them are window[:at]
	window [zWindow]byte
}

// zKept are streams that stopped in the middle of their pcluster, for the
// reader that goes on there: a pcluster of 1 MiB decodes to several, and
// reading them in steps from the start each time would decode each byte many
// times over. A reader takes the stream out, so nobody waits for another; who
// comes while it is out decodes from the start.
var zKept [zKeptStreams]atomic.Pointer[zStream]

var zStreams = sync.Pool{New: func() any { return new(zStream) }}

// keep reports whether e's stream is to be kept: the extent goes on behind
// what is wanted, and enough of it precedes that.
func (r *zRead) keep(e *zExtent) bool {
	goesOn := e.end > r.end || !e.whole
	return !e.plain && goesOn && min(e.end, r.end)-e.la >= zKeepMin
}

// key names the pcluster of e.
func (r *zRead) key(e *zExtent) zKey {
	return zKey{image: r.in.im.id, pa: e.pa, plen: e.plen}
}

// kept fills p with what is wanted of e, the first extent, from a kept stream.
// It reports whether there was one; if its data are invalid there was none, so
// that they are read again.
func (r *zRead) kept(e zExtent) bool {
	skip := r.off - e.la
	if e.plain || skip < zKeepMin {
		return false
	}
	key := r.key(&e)
	slot := key.slot()
	s := slot.Swap(nil)
	if s == nil {
		return false
	}
	if s.key != key {
		if !slot.CompareAndSwap(nil, s) {
			s.release()
		}
		return false
	}
	dst := r.p[:min(e.end, r.end)-r.off]
	if n, err := s.read(dst, skip); err != nil || n < len(dst) {
		s.release()
		return false
	}
	if r.keep(&e) {
		s.keep()
	} else {
		s.release()
	}
	return true
}

// stream fills dst from byte skip of extent e on, whose LZ4 block is src, and
// keeps the stream if that is worth it.
func (r *zRead) stream(e *zExtent, src, dst []byte, skip int64) error {
	s := zStreams.Get().(*zStream)
	s.key, s.src = r.key(e), src
	n, err := s.read(dst, skip)
	if err = r.in.decoded(e, n, len(dst), err); err != nil || !r.keep(e) {
		s.release()
		return err
	}
	s.own = getBuffer(int64(len(src)))
	s.src = s.own.b[:copy(s.own.b, src)]
	s.keep()
	return nil
}

// read fills dst with the decoded bytes from skip on. n < len(dst) with a nil
// error means that the block is shorter.
//
// Errors: lz4.ErrCorrupt.
func (s *zStream) read(dst []byte, skip int64) (n int, err error) {
	if skip < s.pos-int64(s.at) {
		s.state, s.pos, s.at = lz4.State{}, 0, 0
	}
	for s.pos < skip {
		if n, err = s.step(skip - s.pos); n == 0 || err != nil {
			return 0, err
		}
	}
	done := copy(dst, s.window[s.at-int(s.pos-skip):s.at])
	if done == 0 && s.pos == 0 {
		// From the start: no history is needed.
		done, err = s.direct(dst, 0)
		return done, err
	}
	for done < len(dst) && done < zHistory {
		if n, err = s.step(int64(len(dst) - done)); n == 0 || err != nil {
			return done, err
		}
		done += copy(dst[done:], s.window[s.at-n:s.at])
	}
	if done < len(dst) {
		return s.direct(dst, done)
	}
	return done, nil
}

// step decodes up to want more bytes into the window, at least one unless the
// block has ended.
func (s *zStream) step(want int64) (n int, err error) {
	if s.at == len(s.window) {
		s.at = copy(s.window[:], s.window[s.at-zHistory:])
	}
	limit := int(min(int64(len(s.window)), int64(s.at)+want))
	end, err := s.state.Decode(s.window[:limit], s.at, s.src)
	n = end - s.at
	s.at, s.pos = end, s.pos+int64(n)
	return n, err
}

// direct decodes into dst[done:] with dst[:done] as the history: all of the
// output so far or at least zHistory bytes. The window gets the new history.
func (s *zStream) direct(dst []byte, done int) (n int, err error) {
	n, err = s.state.Decode(dst, done, s.src)
	s.pos += int64(n - done)
	s.at = copy(s.window[:], dst[max(n-zHistory, 0):n])
	return n, err
}

// keep gives the stream to zKept. A stream of the same pcluster that is
// further on stays.
func (s *zStream) keep() {
	slot, key, pos := s.key.slot(), s.key, s.pos
	old := slot.Swap(s) // s is no longer ours
	if old != nil && old.key == key && old.pos > pos {
		old = slot.Swap(old)
	}
	if old != nil {
		old.release()
	}
}

// release ends the stream.
func (s *zStream) release() {
	if s.own != nil {
		s.own.put()
	}
	s.key, s.own, s.src = zKey{}, nil, nil
	s.state, s.pos, s.at = lz4.State{}, 0, 0
	zStreams.Put(s)
}
