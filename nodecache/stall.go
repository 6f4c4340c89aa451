package nodecache

import (
	"context"
	"io"
	"sync/atomic"
	"time"
)

// stallReader cancels the request when a read of its body brings nothing for
// too long. A registry that sends a byte now and then is bounded by the
// caller's context only.
type stallReader struct {
	body    io.Reader
	limit   time.Duration
	timer   *time.Timer
	stalled atomic.Bool
}

func newStallReader(body io.Reader, limit time.Duration, cancel context.CancelFunc) *stallReader {
	r := &stallReader{body: body, limit: limit}
	r.timer = time.AfterFunc(limit, func() {
		r.stalled.Store(true)
		cancel()
	})
	return r
}

func (r *stallReader) Read(p []byte) (int, error) {
	r.timer.Reset(r.limit)
	return r.body.Read(p)
}

func (r *stallReader) stop() { r.timer.Stop() }
