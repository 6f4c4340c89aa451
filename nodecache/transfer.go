package nodecache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// maxStreams is how many requests bring a blob at a time, beside those of readers:
	// one connection over a long way does not fill it.
	maxStreams = 4
	// minSpan and maxSpan bound what one request of a stream asks for, in chunks: 4 to
	// 32 MiB. It doubles with each round of the streams.
	minSpan, maxSpan = 16, 128
	// probeSpan is the span of a lazy image's first request, in chunks: what comes while
	// other connections are made, and readers begin to ask.
	probeSpan = 4
	// lazySpan is the span of those after it: what readers ask for comes after what
	// streams have asked for. From there it follows the time that requests take, with
	// spanTime as the aim: so long that four of them fill the line while each in turn
	// waits for its answer, and so short that a reader may wait for what is claimed.
	lazySpan = 2
	spanTime = 400 * time.Millisecond
	// maxAhead is how far the streams may be ahead of the hash, in bytes, so that its
	// reads are of pages that are still in memory.
	maxAhead = 128 << 20
	// windowSize: after so many bytes they are sent to the disk, and those before them
	// dropped from the page cache, so that a pull neither fills it nor piles up dirty
	// pages that the fsync at the end would have to wait for.
	windowSize = 16 << 20
	// maxSources bounds the credentials that are kept for a transfer.
	maxSources = 8
	// maxPause of a transfer whose registry fails while lazy images need it.
	maxPause = 30 * time.Second
)

// chunkState is where a chunk of a transfer is.
type chunkState uint8

const (
	chunkMissing  chunkState = iota
	chunkRecorded            // the state file says that it is there: to be checked
	chunkFetching            // a job brings it
	chunkStoring             // its bytes are being written, or checked
	chunkPresent
)

// answer is what is known of a registry.
type answer uint8

const (
	unknown answer = iota
	yes
	no
)

// transfer is the one pull of a blob that runs, for all who wait for the whole of it
// and for all lazy images that read it meanwhile. Streams bring it in order, each a run
// of chunks at a time; jobs of readers bring what is read, before; the hash follows.
//
// It ends when the blob is complete, when its digest turns out to be another, and when
// nobody needs it any more or, without lazy images, when the registry fails for good.
// What is there stays then, for the next one.
//
// LOCK ORDER: Store.mu before transfer.mu.
type transfer struct {
	store *Store
	blob  digest.Digest
	size  int64
	what  string // for messages

	// Holders; 0 of both: left behind, and cancelled.
	waiters int  // for the whole; GUARDED_BY(Store.mu)
	users   int  // lazy images; GUARDED_BY(Store.mu)
	wasLazy bool // there was one, ever; GUARDED_BY(Store.mu)
	ended   bool // no longer in the store's table; GUARDED_BY(Store.mu)

	life   context.Context // ends when nobody needs it, and with the store
	cancel context.CancelFunc
	opened chan struct{} // closed when partial can be read, or err is set
	done   chan struct{} // closed at the end

	complete atomic.Bool   // the digest is right and the blob has its name
	verdict  chan struct{} // closed when complete, or spoiled

	part    *partial // set before opened is closed
	resumed bool     // some chunks are of an earlier transfer; the own goroutine's
	hash    hash.Hash
	demands sync.WaitGroup // jobs of readers

	mu       sync.Mutex
	changed  chan struct{}     // closed at the next change; GUARDED_BY(mu)
	waiting  bool              // somebody waits for it; GUARDED_BY(mu)
	sources  []*registryClient // the first is used; never empty; GUARDED_BY(mu)
	states   []chunkState      // GUARDED_BY(mu)
	have     int               // chunks that are present; GUARDED_BY(mu)
	low      int               // no chunk below is missing; GUARDED_BY(mu)
	hashed   int               // the hash has seen so many; GUARDED_BY(mu)
	jobs     []*job            // under way; GUARDED_BY(mu)
	ranges   answer            // whether the registry sends parts; GUARDED_BY(mu)
	span     int               // chunks of the next job of a stream; GUARDED_BY(mu)
	spans    int               // jobs until it doubles, unless lazy; GUARDED_BY(mu)
	lazy     bool              // there was a lazy image, ever; GUARDED_BY(mu)
	first    []int             // chunks that streams bring before others; GUARDED_BY(mu)
	trouble  error             // of the last request, nil when it brought something; GUARDED_BY(mu)
	spoiled  error             // the digest is wrong; GUARDED_BY(mu)
	err      error             // of the end, nil before and when complete; GUARDED_BY(mu)
	closed   bool              // part is closed; GUARDED_BY(mu)
	failedBy string            // the source of the last request that failed; GUARDED_BY(mu)
	rounds   int               // that failed; GUARDED_BY(mu)
	roundErr error             // of the last that failed; GUARDED_BY(mu)
	reads    demand            // GUARDED_BY(mu)
	trace    trace             // GUARDED_BY(mu)
}

// job is a request under way, or about to be. Its fields are guarded by transfer.mu.
//
// Invariant: pos <= hi. What is below pos has come.
type job struct {
	pos, hi int       // chunks
	began   time.Time // when it was taken
	demand  bool      // a reader's
	hasty   bool      // of a reader who has not read much in a row
	whole   bool      // all of the blob, from its start, without a range
	// answered is when its last answer began, and first was pos then; at first both
	// are those of when it was taken.
	answered time.Time
	first    int
	// moved is when bytes last came, in ns since 1970; 0: never. Not guarded.
	moved atomic.Int64
}

func (s *Store) newTransfer(reg *registryClient, rec record) *transfer {
	return &transfer{
		store: s, blob: rec.Blob, size: rec.Size,
		what:    "blob " + rec.Blob.String() + " of " + reg.ref.String(),
		opened:  make(chan struct{}),
		done:    make(chan struct{}),
		verdict: make(chan struct{}),
		hash:    sha256.New(),
		sources: []*registryClient{reg},
		changed: make(chan struct{}),
		span:    minSpan, spans: maxStreams,
	}
}

// await lets go of t.mu until something changed, d has passed (0: however long) or ctx
// has ended, and takes it again.
func (t *transfer) await(ctx context.Context, d time.Duration) {
	t.waiting = true
	ch := t.changed
	t.mu.Unlock()
	defer t.mu.Lock()
	var late <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-ch:
	case <-late:
	case <-ctx.Done():
	}
}

// wake ends all await; t.mu is held.
func (t *transfer) wake() {
	if t.waiting {
		t.waiting = false
		close(t.changed)
		t.changed = make(chan struct{})
	}
}

// source is the registry to ask.
func (t *transfer) source() *registryClient {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sources[0]
}

// addSource notes another way to the blob: of equal credentials the newest is used, and
// of all those that were given last.
func (t *transfer) addSource(reg *registryClient) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sources = slices.DeleteFunc(t.sources, func(r *registryClient) bool { return r.source == reg.source })
	t.sources = append([]*registryClient{reg}, t.sources[:min(len(t.sources), maxSources-1)]...)
	t.reads.retryAt, t.trouble = time.Time{}, nil
	t.wake()
}

// rotate puts a source that failed behind the others.
func (t *transfer) rotate(reg *registryClient) {
	if len(t.sources) > 1 && t.sources[0] == reg {
		t.sources = append(slices.Clone(t.sources[1:]), reg)
	}
}

// run is the life of a transfer. It tells the store before it ends.
func (t *transfer) run() {
	defer t.store.running.Done()
	err := t.open()
	close(t.opened)
	if err == nil {
		err = t.bringAll(t.life)
	}
	t.end(err)
}

// bringAll makes one round after the other until the blob is complete.
func (t *transfer) bringAll(ctx context.Context) error {
	for {
		err := t.round(ctx)
		whole := err == nil
		if whole {
			err = t.finish(ctx)
		}
		switch wrong := errors.Is(err, ErrDigestMismatch); {
		case err == nil:
			return nil
		case wrong && !whole && t.distrust():
		case wrong && whole && (t.distrust() || t.resumed) && t.restart():
			// What a mirror may have spoiled, also of an earlier transfer, is fetched
			// again, unless somebody has read it.
		case whole, !t.goOn(ctx, err):
			return err
		}
	}
}

func (t *transfer) open() error {
	s := t.store
	if err := s.removeBlob(t.blob); err != nil { // of the wrong length, or none
		return s.diskError("replace damaged "+t.what, err)
	}
	part, err := s.openPartial(t.what, t.blob, t.size)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.part = part
	t.states = make([]chunkState, chunksOf(t.size))
	for c, sum := range part.sums {
		if sum != 0 {
			t.states[c], t.resumed = chunkRecorded, true
		}
	}
	t.first = s.loadOrder(t.blob, len(t.states))
	t.trace.init(len(t.states))
	return nil
}

// goOn tells whether there is to be another round after one that failed, and waits for
// it: only lazy images need a registry that fails for long.
func (t *transfer) goOn(ctx context.Context, err error) bool {
	s := t.store
	s.mu.Lock()
	t.ended = t.users == 0 || ctx.Err() != nil
	s.mu.Unlock()
	if t.ended { //nolint:gocritic // written by this goroutine alone
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rounds++
	t.roundErr = err
	t.wake()
	pause := min(t.sources[0].retry.max<<min(t.rounds-1, 8), maxPause)
	until := time.Now().Add(pause)
	for ctx.Err() == nil {
		left := time.Until(until)
		// What a reader got, or other credentials, are worth another try at once.
		if left <= 0 || t.trouble == nil {
			break
		}
		t.await(ctx, left)
	}
	return ctx.Err() == nil
}

// end leaves the table, removes what is of no use and tells who waits.
func (t *transfer) end(err error) {
	s := t.store
	t.cancel()
	t.demands.Wait()
	s.mu.Lock()
	t.ended = true
	s.mu.Unlock()
	t.mu.Lock()
	useless := t.part != nil && err != nil && (t.have == 0 && !slices.Contains(t.states, chunkRecorded) ||
		errors.Is(err, ErrNoSpace) || errors.Is(err, ErrDigestMismatch))
	t.err, t.trouble = err, err
	if errors.Is(err, ErrDigestMismatch) && t.spoiled == nil {
		t.spoiled = err
		t.store.spoil(t.blob)
		close(t.verdict)
	}
	order := t.trace.list
	if t.part != nil {
		t.part.close()
	}
	t.closed = true
	t.wake()
	t.mu.Unlock()
	if useless {
		_ = s.removePartial(t.blob)
	}
	s.unclaim(s.dir.partial(t.blob))
	if len(order) > 0 && t.spoiled == nil {
		_ = s.saveOrder(t.blob, order) // it speeds up the next one, no more
	}
	// Only now may another transfer of the blob begin.
	s.mu.Lock()
	if s.flights[t.blob] == t {
		delete(s.flights, t.blob)
	}
	s.mu.Unlock()
	close(t.done)
}

// distrust tells whether a mirror sent some of it, which is then not asked again.
func (t *transfer) distrust() (any bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, reg := range t.sources {
		any = reg.distrust(t.blob.String()) || any
	}
	return any
}

// restart forgets all chunks, unless a lazy image may have read some.
func (t *transfer) restart() bool {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	if t.wasLazy {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.part.forget()
	t.resumed = false
	clear(t.states)
	t.have, t.low, t.hashed = 0, 0, 0
	t.hash.Reset()
	return true
}

// finish checks the digest and gives the blob its name.
func (t *transfer) finish(ctx context.Context) error {
	if got := digest.NewDigest(digest.SHA256, t.hash); got != t.blob {
		return fmt.Errorf("%w: the registry sent %s for the %s", ErrDigestMismatch, got, t.what)
	}
	if err := ended(ctx); err != nil {
		return fmt.Errorf("pull %s: %w", t.what, err)
	}
	if err := t.part.publish(t.store.dir); err != nil {
		return t.store.diskError("store "+t.what, err)
	}
	t.complete.Store(true)
	close(t.verdict)
	return nil
}
