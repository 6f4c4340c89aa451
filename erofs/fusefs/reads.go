package fusefs

import (
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// ReadCounts are the READ requests of all file systems of the process. What the page
// cache has is never asked for, nor what the kernel reads from other files.
type ReadCounts struct {
	Image     Served // read from an image when asked for
	Readahead Served // read ahead of the request
	Failed    int64  // answered with an error
	// Oldest is how long the oldest request under way waits; 0: none does. A few of
	// more than some hundred at once are not seen.
	Oldest time.Duration
}

// Served are requests and the bytes of their answers.
type Served struct{ Requests, Bytes int64 }

// CountReads returns the counts so far.
func CountReads() ReadCounts {
	return ReadCounts{
		Image: reads.image.count(), Readahead: reads.ahead.count(),
		Failed: reads.failed.Load(), Oldest: reads.oldest(),
	}
}

// reads counts the requests of the process.
var reads = readCounter{epoch: time.Now()}

type readCounter struct {
	image, ahead served
	failed       atomic.Int64

	epoch time.Time
	next  atomic.Uint64 // where to look for a place
	// places are when the requests under way began, in ns since epoch; 0: free.
	places [readPlaces]readPlace
}

const (
	// readPlaces is how many requests under way are seen at once: 16 KiB.
	readPlaces = 256
	// readTries bounds the search for a place.
	readTries = 8
)

// readPlace is alone in a cache line.
type readPlace struct {
	began atomic.Int64
	fs    atomic.Pointer[FS] // whose file node is; may be of the request before for a moment
	node  atomic.Uint64
	_     [40]byte
}

type served struct{ requests, bytes atomic.Int64 }

func (s *served) add(bytes int) {
	s.requests.Add(1)
	s.bytes.Add(int64(bytes))
}

func (s *served) count() Served { return Served{s.requests.Load(), s.bytes.Load()} }

// LongRead is a READ request that has been under way for long.
type LongRead struct {
	// ID is the same each time that LongReads tells of the request.
	ID  [2]int64
	Age time.Duration
	// Domain is the name of the file's domain, File what it is: nil if nothing is known
	// of it any more.
	Domain string
	File   *NodeUse
}

// LongReads lists the requests of the process that are older than age.
func LongReads(age time.Duration) (list []LongRead) {
	for i := range reads.places {
		p := &reads.places[i]
		began := p.began.Load()
		old := time.Since(reads.epoch) - time.Duration(began)
		fs := p.fs.Load()
		if began == 0 || old < age || fs == nil {
			continue
		}
		l := LongRead{ID: [2]int64{int64(i), began}, Age: old, Domain: fs.domain.Name()}
		if use, ok := fs.Node(p.node.Load()); ok {
			l.File = &use
		}
		list = append(list, l)
	}
	return list
}

// begin notes that a request for a file has begun, at a place that end is to free, or nil.
func (c *readCounter) begin(fs *FS, node nodeID) *readPlace {
	now := max(int64(time.Since(c.epoch)), 1)
	for range readTries {
		p := &c.places[c.next.Add(1)%readPlaces]
		if p.began.CompareAndSwap(0, now) {
			p.fs.Store(fs)
			p.node.Store(uint64(node))
			return p
		}
	}
	return nil
}

// end notes what was answered.
func (c *readCounter) end(p *readPlace, r fuse.ReadResult, st fuse.Status) {
	if p != nil {
		p.fs.Store(nil)
		p.began.Store(0)
	}
	if st != fuse.OK || r == nil {
		c.failed.Add(1)
		return
	}
	from := &c.image
	if _, ok := r.(*aheadResult); ok {
		from = &c.ahead
	}
	from.add(r.Size())
}

func (c *readCounter) oldest() time.Duration {
	var first int64
	for i := range c.places {
		if began := c.places[i].began.Load(); began != 0 && (first == 0 || began < first) {
			first = began
		}
	}
	if first == 0 {
		return 0
	}
	return time.Since(c.epoch) - time.Duration(first)
}
