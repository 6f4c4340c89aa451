package build

import (
	"io"
	"sync"
)

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

// Ahead reads r in a goroutine of its own, at most 1 MiB ahead of its reader. Close
// waits for the goroutine to end, so end what r waits for before.
func Ahead(r io.Reader) io.ReadCloser {
	a := &ahead{full: make(chan piece, aheadBuffers), free: make(chan []byte, aheadBuffers), stop: make(chan struct{}), done: make(chan struct{})}
	for range aheadBuffers {
		a.free <- make([]byte, aheadSize)
	}
	go a.run(r)
	return a
}

type piece struct {
	buf []byte
	n   int
	err error
}

type ahead struct {
	full chan piece
	free chan []byte
	stop chan struct{}
	done chan struct{}
	once sync.Once
	cur  piece
	off  int
}

func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		n, err := fill(r, buf)
		a.full <- piece{buf, n, err}
		if err != nil {
			return
		}
	}
}

// fill is io.ReadFull that keeps r's own error.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}

func (a *ahead) Read(p []byte) (int, error) {
	for a.off == a.cur.n {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf
		}
		a.cur, a.off = <-a.full, 0
	}
	n := copy(p, a.cur.buf[a.off:a.cur.n])
	a.off += n
	return n, nil
}

func (a *ahead) Close() error {
	a.once.Do(func() { close(a.stop) })
	<-a.done
	return nil
}
