package nodecache

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A mirror that brings less than slowRate bytes a second over a time of
	// reading of slowTime is passed over, if there is another to ask.
	slowRate = 64 << 10
	slowTime = 15 * time.Second
)

var errSlow = errors.New("the mirror is too slow")

// answerBody is the body of an answer, which gives back the request's place when it
// is closed. A mirror's that breaks off benches the mirror.
type answerBody struct {
	io.ReadCloser
	release func()
	// received counts the bytes.
	received *atomic.Int64

	mirror    *endpoint // or nil
	impatient bool      // a slow one counts as broken
	spent     time.Duration
	brought   int64

	once sync.Once
}

func (b *answerBody) Read(p []byte) (int, error) {
	start := time.Now()
	n, err := b.ReadCloser.Read(p)
	b.received.Add(int64(n))
	if b.mirror == nil {
		return n, err
	}
	b.spent += time.Since(start)
	b.brought += int64(n)
	if b.spent >= slowTime {
		if b.impatient && b.brought < int64(slowRate*b.spent.Seconds()) && err == nil {
			err = errSlow
		}
		b.spent, b.brought = 0, 0
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		b.bench()
	}
	return n, err
}

// bench has a mirror that broke off asked last for a while. Reads that are
// cancelled do not: who does that for a stall says so.
func (b *answerBody) bench() {
	if b.mirror != nil {
		b.once.Do(func() { b.mirror.health.bench(b.mirror.key(), 0) })
	}
}

func (b *answerBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
