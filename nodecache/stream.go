package nodecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// round brings what is missing, with several streams, and hashes it. The error is the
// first one's of them.
func (t *transfer) round(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(fn func(context.Context) error) {
		wg.Go(func() {
			if err := fn(ctx); err != nil {
				cancel(&roundError{err})
			}
		})
	}
	for range min(maxStreams, (len(t.states)+minSpan-1)/minSpan) {
		start(t.stream)
	}
	start(t.hashInOrder)
	wg.Wait()
	var failed *roundError
	if errors.As(context.Cause(ctx), &failed) {
		return failed.err
	}
	return ended(ctx)
}

// roundError is what ended a round.
type roundError struct{ err error }

func (e *roundError) Error() string { return e.err.Error() }

// stream brings one run of missing chunks after the other, until all are present.
func (t *transfer) stream(ctx context.Context) error {
	for {
		j := t.claim(ctx)
		if j == nil {
			return ended(ctx)
		}
		var reg *registryClient
		err := t.source().retry.do(ctx, func() (int64, error) {
			reg = t.source()
			return t.fetch(ctx, reg, j)
		})
		t.giveBack(j, reg, err)
		if err != nil {
			return err
		}
	}
}

// claim takes the next run of missing chunks. It waits while there is none to take, and
// returns nil when all are present or ctx has ended.
func (t *transfer) claim(ctx context.Context) *job {
	t.mu.Lock()
	defer t.mu.Unlock()
	since := time.Now()
	for t.have < len(t.states) && ctx.Err() == nil {
		if wait := t.quiet(since); wait > 0 {
			t.await(ctx, wait)
			continue
		}
		if j := t.next(); j != nil {
			t.take(j)
			return j
		}
		t.await(ctx, 0)
	}
	return nil
}

// quiet is how long a stream that has waited for a job since then is to wait for readers
// who need the bandwidth: never with fewer than quietJobs requests under way, so that the
// line is in use while one of them is on its way. t.mu is held.
func (t *transfer) quiet(since time.Time) time.Duration {
	if len(t.jobs) < quietJobs {
		return 0
	}
	return min(time.Until(since.Add(quietLimit)), t.reads.busy())
}

// next chooses the next job of a stream, or nil when there is none to take now: first
// what was recorded of earlier readers, then what is ahead of sequential ones, then the
// blob in order. t.mu is held.
func (t *transfer) next() *job {
	n := len(t.states)
	streaming := false
	for _, j := range t.jobs {
		streaming = streaming || !j.demand
	}
	switch {
	case t.ranges == no && streaming, t.ranges == unknown && streaming:
		return nil // alone, or until it is known whether parts can be had
	case t.ranges == no:
		return &job{hi: n, whole: true}
	}
	for len(t.first) > 0 {
		c := t.first[0]
		t.first = t.first[1:]
		if t.states[c] != chunkMissing {
			continue
		}
		j := &job{pos: c, hi: c + 1}
		for len(t.first) > 0 && t.first[0] == j.hi && t.states[j.hi] == chunkMissing && j.hi-j.pos < t.span {
			t.first = t.first[1:]
			j.hi++
		}
		return j
	}
	if c := t.ahead(); c >= 0 {
		return t.runAt(c)
	}
	for t.low < n && t.states[t.low] != chunkMissing {
		t.low++
	}
	if t.low == n || int64(t.low-t.hashed)*chunkSize > maxAhead {
		return nil
	}
	j := t.runAt(t.low)
	j.whole = j.pos == 0 && j.hi == n && t.ranges == unknown
	return j
}

// ahead is the first missing chunk ahead of a sequential reader, of several the one that
// read last, or -1. t.mu is held.
func (t *transfer) ahead() int {
	for _, p := range t.reads.places {
		if p.run < sequentialRun {
			continue
		}
		for c := p.end; c < min(p.end+min(2*maxStreams*t.span, maxAheadOfReader), len(t.states)); c++ {
			if t.states[c] == chunkMissing {
				return c
			}
		}
	}
	return -1
}

// runAt makes a job of the missing chunks from c on: as many as make a request worth
// its while, and at the end of the blob so few that no stream is left alone with
// much. t.mu is held.
func (t *transfer) runAt(c int) *job {
	rest := (len(t.states) - t.have) / (2 * maxStreams)
	limit := min(t.span, max(rest, t.leastSpan()))
	if t.lazy && t.reads.busy() > 0 {
		limit = min(limit, max(quietSpan, t.leastSpan()))
	}
	j := &job{pos: c, hi: c}
	for j.hi < len(t.states) && t.states[j.hi] == chunkMissing && j.hi-j.pos < limit {
		j.hi++
	}
	if t.spans--; t.spans == 0 && !t.lazy {
		t.span, t.spans = min(2*t.span, maxSpan), maxStreams
	}
	return j
}

// leastSpan is t.span at the beginning; t.mu is held.
func (t *transfer) leastSpan() int {
	if t.lazy {
		return t.store.lazySpan
	}
	return minSpan
}

// adapt chooses t.span by how long a stream's job took: t.mu is held.
func (t *transfer) adapt(j *job) {
	n := j.pos - j.first
	if !t.lazy || j.demand || n <= 0 {
		return
	}
	fit := int(spanTime * time.Duration(n) / max(time.Since(j.answered), time.Millisecond))
	switch {
	case fit >= 2*t.span:
		t.span = min(2*t.span, maxSpan)
	case fit <= t.span/2:
		t.span = max(t.span/2, t.store.lazySpan)
	}
}

// take marks the chunks of a job; t.mu is held.
func (t *transfer) take(j *job) {
	for c := j.pos; c < j.hi; c++ {
		if t.states[c] == chunkMissing {
			t.states[c] = chunkFetching
		}
	}
	j.began, j.first = time.Now(), j.pos
	j.answered = j.began
	t.jobs = append(t.jobs, j)
	t.reads.count(j, 1)
}

// giveBack ends a job: what it did not bring is missing again.
func (t *transfer) giveBack(j *job, reg *registryClient, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.jobs {
		if t.jobs[i] == j {
			t.jobs = append(t.jobs[:i:i], t.jobs[i+1:]...)
			break
		}
	}
	for c := j.pos; c < j.hi; c++ {
		if t.states[c] == chunkFetching && t.jobOf(c) == nil {
			t.states[c] = chunkMissing
			t.low = min(t.low, c)
		}
	}
	if err != nil {
		t.trouble, t.failedBy = err, reg.source
		t.rotate(reg)
	}
	t.reads.count(j, -1)
	t.adapt(j)
	t.wake()
}

// jobOf returns the job that brings chunk c: a reader's before a stream's, or nil. t.mu
// is held.
func (t *transfer) jobOf(c int) (found *job) {
	for _, j := range t.jobs {
		if j.pos <= c && c < j.hi && (found == nil || j.demand) {
			found = j
		}
	}
	return found
}

// fetch makes one request for what a job lacks. It returns how many bytes of chunks
// that were not there it brought.
func (t *transfer) fetch(ctx context.Context, reg *registryClient, j *job) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t.mu.Lock()
	if j.whole && (t.ranges != unknown || j.pos > 0) {
		// Once begun, go on where it broke off, unless that is known not to work.
		j.whole = t.ranges == no
	}
	if j.whole {
		j.pos = 0
	}
	end := j.hi // as asked for: a reader may cut the job
	whole, lo, hi := j.whole, int64(j.pos)*chunkSize, min(int64(j.hi)*chunkSize, t.size)
	t.mu.Unlock()
	if lo >= hi {
		return 0, nil
	}
	header := make(http.Header)
	if !whole {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", lo, hi-1))
	}
	resp, err := reg.send(ctx, http.MethodGet, "blobs", t.blob.String(), header)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusOK:
		if !whole && !t.sendsAll(j) { // it sends all of it, whatever was asked
			return 0, &transientError{err: fmt.Errorf("%w: %s: the registry sends no parts of the blob", ErrUnavailable, reg.ref)}
		}
		lo, hi, end = 0, t.size, len(t.states)
	case whole:
		return 0, &transientError{err: fmt.Errorf("%w: %s: the registry sent a part of the blob that was not asked for", ErrUnavailable, reg.ref)}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		t.sendsAll(j)
		return 0, &transientError{err: fmt.Errorf("%w: %s: the registry can't resume the blob", ErrUnavailable, reg.ref)}
	case !isRange(resp.Header.Get("Content-Range"), lo, hi, t.size):
		t.sendsAll(j)
		return 0, &transientError{err: fmt.Errorf("%w: %s: the registry resumed the blob elsewhere", ErrUnavailable, reg.ref)}
	default:
		t.sendsParts()
	}
	if n := resp.ContentLength; n >= 0 && n != hi-lo {
		return 0, t.wrongSize(reg, lo+n)
	}
	stall := reg.retry.stall
	if j.demand {
		stall = min(stall, demandStall)
	}
	t.mu.Lock()
	j.answered, j.first = time.Now(), j.pos
	t.mu.Unlock()
	body := newStallReader(resp.Body, stall, cancel)
	defer body.stop()
	return t.copy(ctx, reg, j, end, body)
}

// isRange checks a Content-Range: bytes <first>-<last>/<size or *>.
func isRange(contentRange string, lo, hi, size int64) bool {
	spec, ok := strings.CutPrefix(contentRange, "bytes ")
	span, total, ok2 := strings.Cut(spec, "/")
	return ok && ok2 && span == fmt.Sprintf("%d-%d", lo, hi-1) && (total == "*" || total == strconv.FormatInt(size, 10))
}

func (t *transfer) sendsParts() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ranges == unknown {
		t.ranges = yes
		if t.lazy { // now the metadata is read
			t.span, t.reads.last = t.store.lazySpan, time.Now()
		}
		t.wake()
	}
}

// sendsAll notes that the registry sends no parts. A stream's job becomes that of the
// whole blob, unless another one is that already.
func (t *transfer) sendsAll(j *job) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ranges = no
	t.wake()
	if j.demand {
		return false
	}
	for _, other := range t.jobs {
		if other != j && other.whole {
			return false
		}
	}
	j.pos, j.hi, j.whole = 0, len(t.states), true
	for c := range t.states {
		if t.states[c] == chunkMissing {
			t.states[c] = chunkFetching
		}
	}
	return true
}

// copy keeps the chunks of the body, which is to end with chunk end, and fails on the
// first byte too many.
func (t *transfer) copy(ctx context.Context, reg *registryClient, j *job, end int, body *stallReader) (gained int64, err error) {
	bounce := bouncePool.Get().(*bounceBuffer)
	defer bouncePool.Put(bounce)
	cut := false
	for {
		t.mu.Lock()
		cut = j.hi < end // by a reader: the rest is not ours
		c, more := j.pos, j.pos < j.hi
		t.mu.Unlock()
		if !more {
			break
		}
		buf := bounce.aligned[:t.part.chunkLen(c)]
		if _, err := io.ReadFull(movingReader{j, body}, buf); err != nil {
			return gained, reg.bodyFailed(ctx, body, err)
		}
		kept, err := t.keep(j, c, buf)
		if err != nil {
			return gained, err
		}
		if kept {
			gained += int64(len(buf))
		}
	}
	if cut {
		return gained, nil
	}
	var extra [1]byte
	if n, err := io.ReadFull(body, extra[:]); n > 0 {
		return gained, t.wrongSize(reg, -1)
	} else if !errors.Is(err, io.EOF) && ended(ctx) != nil && !body.stalled.Load() {
		return gained, reg.bodyFailed(ctx, body, err)
	}
	return gained, nil // all bytes are here, however the connection ended
}

// keep writes chunk c, unless another job has brought it meanwhile, and moves the job
// on.
func (t *transfer) keep(j *job, c int, bytes []byte) (kept bool, err error) {
	t.mu.Lock()
	if kept = t.states[c] == chunkFetching || t.states[c] == chunkMissing; kept {
		t.states[c] = chunkStoring
	}
	t.mu.Unlock()
	if kept {
		err = t.part.write(c, bytes)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if kept && err != nil {
		t.states[c] = chunkFetching // until the job is given back
		t.wake()
		return false, t.store.diskError("write "+t.what, err)
	}
	if kept {
		t.states[c] = chunkPresent
		t.have++
		t.trouble = nil
	}
	j.pos = c + 1
	t.wake()
	return kept, nil
}

// wrongSize is the error for a blob of another length: below 0, a longer one.
func (t *transfer) wrongSize(reg *registryClient, got int64) error {
	if got < 0 {
		return fmt.Errorf("%w: blob %s of %s: the registry sent more than the %d bytes of its descriptor", ErrDigestMismatch, t.blob, reg.ref, t.size)
	}
	return fmt.Errorf("%w: blob %s of %s: the registry has %d bytes, its descriptor says %d", ErrDigestMismatch, t.blob, reg.ref, got, t.size)
}

// hashInOrder hashes chunk after chunk as they come, and checks those that an earlier
// transfer has left. It returns nil when all are hashed.
func (t *transfer) hashInOrder(ctx context.Context) error {
	buf := make([]byte, chunkSize)
	for {
		t.mu.Lock()
		c := t.hashed
		for c < len(t.states) && t.states[c] != chunkPresent && t.states[c] != chunkRecorded && ctx.Err() == nil {
			t.await(ctx, 0)
		}
		if c == len(t.states) || ctx.Err() != nil {
			t.mu.Unlock()
			return ended(ctx)
		}
		if t.states[c] == chunkRecorded {
			t.check(c, buf)
			t.mu.Unlock()
			continue
		}
		t.mu.Unlock()
		bytes, err := t.part.read(c, buf)
		if err != nil {
			return t.store.diskError("read back "+t.what, err)
		}
		t.hash.Write(bytes)
		if end := int64(c)*chunkSize + int64(len(bytes)); end%windowSize == 0 || end == t.size {
			start := (end - 1) / windowSize * windowSize
			t.part.flush(max(start-windowSize, 0), start, end)
		}
		t.mu.Lock()
		t.hashed = c + 1
		t.wake()
		t.mu.Unlock()
	}
}

// check looks whether a recorded chunk is there. t.mu is held, and let go of meanwhile.
func (t *transfer) check(c int, buf []byte) {
	t.states[c] = chunkStoring
	t.mu.Unlock()
	bytes, err := t.part.read(c, buf)
	good := err == nil && t.part.matches(c, bytes)
	t.mu.Lock()
	if good {
		t.states[c] = chunkPresent
		t.have++
	} else {
		t.states[c] = chunkMissing
		t.low = min(t.low, c)
	}
	t.wake()
}
