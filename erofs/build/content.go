package build

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

const (
	blockSize = encode.BlockSize
	firstData = blockSize // block 0 has the superblock
	// appendBuffer is how much is written at a time, a multiple of blockSize.
	appendBuffer = 1 << 20
)

type sum [sha256.Size]byte

// content is the data of files.
type content struct {
	sum  sum
	size int64
	at   int64 // address in the image, or in the scratch file if isSmall
	live bool  // of Finish: a file of the tree has it
}

func (c *content) isSmall() bool { return c.size < blockSize }

// contents are all that were stored, in the order of their addresses.
type contents struct {
	bySum map[sum]*content
	order []*content
}

// appender writes to a file from its end on, and can take back what it wrote last.
type appender struct {
	w   File
	off int64 // address of buf[0]
	buf []byte
}

func (a *appender) pos() int64 { return a.off + int64(len(a.buf)) }

// room returns free space of the buffer, at least one byte; used says how much of it
// was filled.
func (a *appender) room() ([]byte, error) {
	if a.buf == nil {
		a.buf = make([]byte, 0, appendBuffer)
	}
	if len(a.buf) == cap(a.buf) {
		if err := a.flush(); err != nil {
			return nil, err
		}
	}
	return a.buf[len(a.buf):cap(a.buf)], nil
}

func (a *appender) used(n int) { a.buf = a.buf[:len(a.buf)+n] }

// align appends zeros up to a block's end.
func (a *appender) align() error {
	for a.pos()%blockSize != 0 {
		p, err := a.room()
		if err != nil {
			return err
		}
		n := min(int64(len(p)), blockSize-a.pos()%blockSize)
		clear(p[:n])
		a.used(int(n))
	}
	return nil
}

func (a *appender) flush() error {
	if len(a.buf) == 0 {
		return nil
	}
	_, err := a.w.WriteAt(a.buf, a.off)
	a.off, a.buf = a.pos(), a.buf[:0]
	return err
}

// back takes back all from the address to on.
func (a *appender) back(to int64) {
	if to >= a.off {
		a.buf = a.buf[:to-a.off]
		return
	}
	a.off, a.buf = to, a.buf[:0]
}

// store stores size bytes of r, once however often they come.
func (b *Builder) store(r io.Reader, size int64) (*content, error) {
	if size == 0 {
		return nil, nil
	}
	if err := b.countBytes(size); err != nil {
		return nil, err
	}
	to := &b.data
	if size < blockSize {
		to = &b.small
	}
	start := to.pos()
	hash := sha256.New()
	for left := size; left > 0; {
		p, err := to.room()
		if err != nil {
			return nil, err
		}
		if err := b.ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.Read(p[:min(left, int64(len(p)))])
		hash.Write(p[:n])
		to.used(n)
		left -= int64(n)
		switch {
		case errors.Is(err, io.EOF) && left > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil && left > 0:
			return nil, err
		}
	}
	c := &content{size: size, at: start}
	hash.Sum(c.sum[:0])
	if old := b.contents.bySum[c.sum]; old != nil {
		to.back(start)
		return old, nil
	}
	if !c.isSmall() {
		if err := to.align(); err != nil {
			return nil, err
		}
	}
	b.contents.bySum[c.sum] = c
	b.contents.order = append(b.contents.order, c)
	return c, nil
}

func (b *Builder) countBytes(n int64) error {
	if n > b.limit.Bytes-b.bytes {
		return beyond("more than %d bytes of files", b.limit.Bytes)
	}
	b.bytes += n
	return nil
}

// compact moves what is live to the front of the data and gives it its place. It
// returns the address behind the data.
func (b *Builder) compact() (end int64, dropped int64, err error) {
	if err := errors.Join(b.data.flush(), b.small.flush()); err != nil {
		return 0, 0, err
	}
	end = firstData
	buf := b.data.buf[:0]
	for _, c := range b.contents.order {
		if c.isSmall() {
			continue
		}
		span := encode.Align(c.size, blockSize)
		if !c.live {
			dropped += span
			continue
		}
		if c.at != end {
			if buf, err = b.move(c.at, end, span, buf); err != nil {
				return 0, 0, err
			}
		}
		c.at = end
		end += span
	}
	return end, dropped, nil
}

// move copies n bytes to a lower address.
func (b *Builder) move(from, to, n int64, buf []byte) ([]byte, error) {
	if buf == nil {
		buf = make([]byte, 0, appendBuffer)
	}
	for n > 0 {
		if err := b.ctx.Err(); err != nil {
			return buf, err
		}
		p := buf[:min(n, int64(cap(buf)))]
		if _, err := b.out.ReadAt(p, from); err != nil && !errors.Is(err, io.EOF) {
			return buf, err
		}
		if _, err := b.out.WriteAt(p, to); err != nil {
			return buf, err
		}
		from, to, n = from+int64(len(p)), to+int64(len(p)), n-int64(len(p))
	}
	return buf, nil
}

// readSmall reads a content below a block.
func (b *Builder) readSmall(c *content, buf *bytes.Buffer) ([]byte, error) {
	buf.Reset()
	_, err := io.CopyN(buf, io.NewSectionReader(b.small.w, c.at, c.size), c.size)
	return buf.Bytes(), err
}
