package nodecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// readPatience is how long a read of a lazy image waits for a registry that does
	// not answer, before it fails. A later read tries again.
	readPatience = 30 * time.Second
	// demandStall is how long a reader's request may bring nothing.
	demandStall = 10 * time.Second
	// maxDemands is how many requests are under way for readers of a blob.
	maxDemands = 8
	// maxDemandSpan is what is read on for a sequential reader, in chunks: 1.75 MiB.
	maxDemandSpan = 7
	// nearbyTime is how long a stream may take to what a reader needs, at the rate that
	// it has, for the reader to wait for it.
	nearbyTime = 400 * time.Millisecond
	// patientTime takes the place of nearbyTime for sequential readers, for whom it
	// matters when the last byte comes, not the next: what the streams bring is what
	// they will read.
	patientTime = 2 * time.Second
	// A stream that has brought nothing for silentTime, or without an answer for
	// unansweredTime, is not waited for, by sequential readers not after patientTime. On
	// a slow line that is no longer than its turn takes; so what it has claimed is for
	// others to bring only after patientTime.
	silentTime, unansweredTime = 500 * time.Millisecond, time.Second
	// sequentialRun is after how many chunks in a row a reader is taken for a
	// sequential one, and sequentialGap how far ahead of the last read it may go on,
	// because several reads are made at once.
	sequentialRun, sequentialGap = 4, 12
	// longRun is after how many chunks a reader's requests make nobody wait: all that
	// streams bring is what it will read.
	longRun = 16
	// maxAheadOfReader is how far ahead of a sequential reader streams go, in chunks: 64
	// MiB. With a small span it is less, two jobs of each stream.
	maxAheadOfReader = 256
	// A sequential reader takes over what a stream has claimed if that takes too long
	// and is cutRest chunks and more. What it needs of less the stream brings again,
	// which is cheaper than another connection.
	cutRest = 32
	// While a request of another reader's is under way, and for quietTime after, because
	// the next one may come, streams ask for nothing that would make it more than
	// quietJobs requests, and for no more than quietSpan chunks, 1 MiB, which that will
	// come after. quietLimit bounds how long a stream waits.
	quietJobs, quietSpan  = 3, 4
	quietTime, quietLimit = 100 * time.Millisecond, time.Second
	// demandPause bounds the time between requests of readers that fail.
	demandPause = 2 * time.Second
)

// demand is what readers of a transfer want. GUARDED_BY(transfer.mu)
type demand struct {
	active   int                        // jobs under way
	hasty    int                        // of them those of readers with less than longRun
	last     time.Time                  // when one of these began or ended
	failed   int                        // jobs that failed, ever
	inRow    int                        // jobs that failed since one did not
	err      error                      // of the last that failed
	retryAt  time.Time                  // no job before
	recently [8]struct{ end, span int } // of the last jobs, to know sequential readers by
	oldest   int
	places   [8]readerAt // the one of the last read first
}

// readerAt is where a reader is: the last of its reads ended with chunk end, after so
// many in a row.
type readerAt struct{ end, run int }

// count counts a job that begins or ends.
func (d *demand) count(j *job, n int) {
	if j.demand {
		d.active += n
	}
	if j.hasty {
		d.hasty += n
		d.last = time.Now()
	}
}

// busy is for how long to expect another request, at least; 0 or less: none.
func (d *demand) busy() time.Duration {
	if d.hasty > 0 {
		return quietLimit
	}
	return time.Until(d.last.Add(quietTime))
}

// follows notes a read of chunks, and tells how many its reader has read in a row.
func (d *demand) follows(first, end int) (run int) {
	p := readerAt{end, end - first}
	at := len(d.places) - 1
	for i, have := range d.places {
		if have.end > 0 && have.end-sequentialGap <= first && first <= have.end+sequentialGap {
			more := max(end-have.end, 0)
			p, at = readerAt{have.end + more, have.run + more}, i
			break
		}
	}
	copy(d.places[1:at+1], d.places[:at])
	d.places[0] = p
	return p.run
}

// spanAt is how many chunks to bring for a reader that begins at chunk c.
func (d *demand) spanAt(c int) int {
	for i := range d.recently {
		if r := &d.recently[i]; r.end == c && r.span > 0 {
			return min(2*r.span, maxDemandSpan)
		}
	}
	return 1
}

// note remembers a job. One that a sequential reader goes on with takes the place of
// the one before it.
func (d *demand) note(from, to int) {
	i := d.oldest
	for k := range d.recently {
		if d.recently[k].end == from && d.recently[k].span > 0 {
			i = k
		}
	}
	if i == d.oldest {
		d.oldest = (d.oldest + 1) % len(d.recently)
	}
	d.recently[i].end, d.recently[i].span = to, to-from
}

// ensure returns when the n bytes at off are in the file, which has as many. It waits
// for no more than readPatience, and not after ctx has ended.
//
// Errors: [ErrDigestMismatch] once the blob turned out to be another,
// [ErrInterrupted], or why the registry does not give the bytes.
func (t *transfer) ensure(ctx context.Context, off, n int64) error {
	first, last := int(off/chunkSize), int((off+n-1)/chunkSize)
	t.mu.Lock()
	defer t.mu.Unlock()
	run := t.reads.follows(first, last+1)
	t.trace.touch(first, last)
	failed := t.reads.failed
	var deadline time.Time
	for c := first; ; {
		if t.spoiled != nil {
			return t.spoiled
		}
		for c <= last && t.states[c] == chunkPresent {
			c++
		}
		if c > last {
			return nil
		}
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(t.store.patience)
		}
		wait := deadline.Sub(now)
		switch {
		case t.err != nil: // it has ended
			return t.err
		case ctx.Err() != nil:
			return ended(ctx)
		case t.reads.failed != failed && !passing(t.reads.err):
			return t.reads.err
		case wait <= 0:
			return t.late()
		}
		if t.states[c] == chunkRecorded {
			t.checkNow(c)
			continue
		}
		if d := t.demandChunk(c, last, run, now); d > 0 { //nolint:contextcheck // a request outlives its reader
			wait = min(wait, d)
		}
		t.await(ctx, wait)
	}
}

// passing tells whether an error may pass while a reader waits.
func passing(err error) bool {
	var transient *transientError
	return err == nil || errors.As(err, &transient)
}

// late is the error of a read that has waited for too long.
func (t *transfer) late() error {
	switch {
	case t.reads.err != nil:
		return fmt.Errorf("no answer for %s: %w", t.store.patience, t.reads.err)
	case t.trouble != nil:
		return fmt.Errorf("no answer for %s: %w", t.store.patience, t.trouble)
	}
	return fmt.Errorf("%w: nothing was sent for %s of %s", ErrUnavailable, t.store.patience, t.what)
}

func (t *transfer) checkNow(c int) {
	bounce := bouncePool.Get().(*bounceBuffer)
	defer bouncePool.Put(bounce)
	t.check(c, bounce.aligned)
}

// demandChunk makes sure that chunk c, which is not there, is brought soon for a reader
// who has read run chunks in a row: by a stream, if that is near, or by a request of its
// own. It returns how long to wait before asking again, if nothing changes; 0: however
// long. t.mu is held.
func (t *transfer) demandChunk(c, last, run int, now time.Time) time.Duration {
	near := nearbyTime
	if run >= sequentialRun {
		near = patientTime
	}
	switch t.states[c] {
	case chunkStoring:
		return 0
	case chunkFetching:
		j := t.jobOf(c)
		if j == nil || j.demand || j.whole {
			return 0
		}
		silent, limit := now.Sub(j.began), unansweredTime
		if moved := j.moved.Load(); moved != 0 {
			silent, limit = now.Sub(time.Unix(0, moved)), silentTime
		}
		if run >= sequentialRun {
			limit = patientTime
		}
		if silent < limit && j.timeTo(c, now) <= near {
			return limit - silent
		}
		if silent >= patientTime || run >= sequentialRun && j.hi-c >= cutRest {
			t.cut(j, c)
		}
	case chunkMissing, chunkRecorded, chunkPresent:
	}
	if t.ranges == no || t.reads.active >= maxDemands {
		return 0
	}
	if wait := t.reads.retryAt.Sub(now); wait > 0 {
		return wait
	}
	// What a stream has claimed, it will bring as well: no more of that than needed.
	end := last + 1
	if t.states[c] == chunkMissing {
		end = max(end, c+t.reads.spanAt(c))
	}
	j := &job{pos: c, hi: c + 1, demand: true, hasty: run < longRun}
	for j.hi < min(end, len(t.states)) && t.states[j.hi] == t.states[c] && j.hi-c < maxDemandSpan {
		j.hi++
	}
	t.reads.note(c, j.hi)
	t.take(j)
	reg := t.sources[0]
	t.demands.Add(1)
	go t.bring(reg, j)
	return 0
}

// timeTo is how long the job will take to bring chunk c, at the rate that it has had: 0
// as long as it has had none.
func (j *job) timeTo(c int, now time.Time) time.Duration {
	if j.pos == j.first {
		return 0
	}
	return now.Sub(j.answered) / time.Duration(j.pos-j.first) * time.Duration(c+1-j.pos)
}

// movingReader notes when bytes of a job come.
type movingReader struct {
	job  *job
	body io.Reader
}

func (r movingReader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	if n > 0 {
		r.job.moved.Store(time.Now().UnixNano())
	}
	return n, err
}

// cut takes what is from chunk c on from a stream's job; t.mu is held.
func (t *transfer) cut(j *job, c int) {
	hi := j.hi
	j.hi = c
	for ; c < hi; c++ {
		if t.states[c] == chunkFetching && t.jobOf(c) == nil {
			t.states[c] = chunkMissing
			t.low = min(t.low, c)
		}
	}
}

// bring is the life of a reader's job.
func (t *transfer) bring(reg *registryClient, j *job) {
	defer t.demands.Done()
	_, err := t.fetch(urgent(t.life), reg, j)
	t.giveBack(j, reg, err)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.reads.inRow = 0
		return
	}
	t.reads.failed++
	t.reads.inRow++
	t.reads.err = err
	pause := min(reg.retry.backoff(t.reads.inRow), demandPause)
	var transient *transientError
	if errors.As(err, &transient) {
		pause = max(pause, min(transient.after, readPatience))
	}
	t.reads.retryAt = time.Now().Add(pause)
	t.wake()
}
