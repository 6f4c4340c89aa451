package encode

import "io"

// streamBuffer is the size of the writes: a multiple of BlockSize.
const streamBuffer = 256 << 10

// Stream writes bytes one after the other, in large pieces. The first error is
// kept; what follows it is dropped.
type Stream struct {
	w     io.WriterAt
	first func(block []byte)
	buf   []byte
	off   int64 // address of buf[0]
	err   error
}

// NewStream starts at the address off, a multiple of BlockSize. first, unless nil,
// is called with the first block when all of it is there.
func NewStream(w io.WriterAt, off int64, first func(block []byte)) *Stream {
	return &Stream{w: w, off: off, first: first}
}

// Err is the first error of a write.
func (s *Stream) Err() error { return s.err }

// Pos is the address of the next byte.
func (s *Stream) Pos() int64 { return s.off + int64(len(s.buf)) }

// Write appends p.
func (s *Stream) Write(p []byte) {
	s.buf = append(s.buf, p...)
	if len(s.buf) >= streamBuffer {
		s.send(len(s.buf) &^ (BlockSize - 1))
	}
}

// PadTo writes zeros up to addr, which is at most a block away.
func (s *Stream) PadTo(addr int64) {
	var zeros [BlockSize]byte
	if n := addr - s.Pos(); n > 0 {
		s.Write(zeros[:n])
	}
}

// send writes the first n bytes of the buffer, whole blocks.
func (s *Stream) send(n int) {
	if n == 0 {
		return
	}
	if s.first != nil {
		s.first(s.buf[:BlockSize])
		s.first = nil
	}
	if s.err == nil {
		_, s.err = s.w.WriteAt(s.buf[:n], s.off)
	}
	s.off += int64(n)
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
}

// Flush writes what is left: whole blocks.
func (s *Stream) Flush() error {
	s.send(len(s.buf))
	return s.err
}
