package metaimage

import "io"

// streamBuffer is the size of the writes: a multiple of blockSize.
const streamBuffer = 256 << 10

// stream writes bytes one after the other from address 0, in large pieces. The
// first error is kept; what follows it is dropped.
type stream struct {
	w     io.WriterAt
	first func(block []byte) // is called with block 0 when all of it is there
	buf   []byte
	off   int64 // address of buf[0]
	err   error
}

// pos is the address of the next byte.
func (s *stream) pos() int64 { return s.off + int64(len(s.buf)) }

func (s *stream) write(p []byte) {
	s.buf = append(s.buf, p...)
	if len(s.buf) >= streamBuffer {
		s.send(len(s.buf) &^ (blockSize - 1))
	}
}

// padTo writes zeros up to addr, which is less than a block away.
func (s *stream) padTo(addr int64) {
	var zeros [blockSize]byte
	if n := addr - s.pos(); n > 0 {
		s.write(zeros[:n])
	}
}

// send writes the first n bytes of the buffer, whole blocks.
func (s *stream) send(n int) {
	if n == 0 {
		return
	}
	if s.off == 0 {
		s.first(s.buf[:blockSize])
	}
	if s.err == nil {
		_, s.err = s.w.WriteAt(s.buf[:n], s.off)
	}
	s.off += int64(n)
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
}

// flush writes what is left: whole blocks.
func (s *stream) flush() error {
	s.send(len(s.buf))
	return s.err
}
