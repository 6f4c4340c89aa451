package share

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

// Inode is a shared inode: the one file in memory of every file with its content.
// Values of one inode are equal. The zero value is of no use.
type Inode struct {
	domain *Domain
	index  uint64
	rec    *record
}

// backing is a regular file of an image that holds an inode's bytes.
type backing struct {
	member *Member
	source source
	size   int64
	cost   uint8 // fingerprint.File.Cost
	bad    bool  // could not be read when another could
}

// before orders backings: the first is the one to read.
func (b backing) before(c backing) bool {
	if b.bad != c.bad {
		return c.bad
	}
	return b.cost < c.cost
}

// badFiles are the files that could not be read when another of the same content
// could.
type badFiles struct {
	some atomic.Bool // there are some
	mu   sync.Mutex
	set  map[source]struct{} // GUARDED_BY(mu)
}

func (b *badFiles) has(s source) bool {
	if !b.some.Load() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.set[s]
	return ok
}

// note notes that a file is bad, and tells whether it was not before.
func (b *badFiles) note(s source) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.set[s]; ok {
		return false
	}
	if b.set == nil {
		b.set = make(map[source]struct{})
	}
	b.set[s] = struct{}{}
	b.some.Store(true)
	return true
}

// good notes that a file could be read.
func (b *badFiles) good(s source) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.set, s)
	b.some.Store(len(b.set) > 0)
}

// forget forgets the files of a member.
func (b *badFiles) forget(slot uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.set {
		if s.slot() == slot {
			delete(b.set, s)
		}
	}
	b.some.Store(len(b.set) > 0)
}

// Index is the inode's number in its domain: dense, stable while the kernel knows the
// inode, and never used twice.
func (in Inode) Index() uint64 { return in.index }

// Size is the size of the content in bytes, always > 0.
func (in Inode) Size() int64 { return in.rec.size }

// Use is what the kernel may hold of this inode; its server keeps it.
func (in Inode) Use() *Use { return &in.rec.use }

// Orphan tells whether no image can supply the inode.
func (in Inode) Orphan() bool { return in.rec.load() == orphan }

// identity tells what the inode is, unless it is forgotten.
func (in Inode) identity() (identity, bool) {
	in.domain.mu.Lock()
	defer in.domain.mu.Unlock()
	if in.rec.load() == 0 {
		return identity{}, false
	}
	return in.domain.identity(in.index, in.rec)
}

// Shared tells whether other images' files can be this inode too.
func (in Inode) Shared() bool {
	id, ok := in.identity()
	return ok && !id.private
}

// Of tells whether a file of the image is this inode.
func (in Inode) Of(m *Member) bool {
	id, ok := in.identity()
	if !ok || !m.enter() {
		return false
	}
	defer m.exit()
	n, _ := m.count(&id)
	return n > 0
}

// Backings is the number of files, over all images of the domain, that are this
// inode: what an unshared page cache would hold it as many times.
func (in Inode) Backings() (n int) {
	for _, f := range in.Files() {
		n += f.Files
	}
	return n
}

// MemberFiles is how many files of an image are an inode.
type MemberFiles struct {
	Member *Member
	Files  int
}

// Files lists the images of the domain that have files which are this inode.
func (in Inode) Files() (list []MemberFiles) {
	if id, ok := in.identity(); ok {
		list, _ = in.domain.files(&id)
	}
	return list
}

// Path is the inode's name in the content mount, an absolute path; empty when it is
// forgotten.
func (in Inode) Path() string {
	id, ok := in.identity()
	if !ok {
		return ""
	}
	return id.path()
}

// ReadAt reads from the backing that costs least to decode, of equal ones the first
// to join. One that fails is passed over, at once and by later reads, as long as
// another can be read; one whose image does not answer, until it does. It keeps the
// contract of io.ReaderAt.
//
// Errors: ErrNoBacking, or those of every backing tried, each with its image.
func (in Inode) ReadAt(p []byte, off int64) (int, error) {
	if off >= in.rec.size {
		return 0, io.EOF
	}
	for {
		s := in.rec.load()
		if s == 0 || s == orphan {
			return 0, ErrNoBacking
		}
		m := in.domain.members.Load().slots[s.slot()]
		if m != nil && m.pace.slow() {
			if n, err, ok := in.readFaster(p, off, m); ok {
				return n, err
			}
		}
		n, err := m.readSource(in.rec, s, p, off)
		if err == nil || isEnd(err) {
			return n, err
		}
		if !errors.Is(err, errLeft) {
			return in.readOther(p, off, backing{member: m, source: s}, err)
		}
	}
}

// readSource reads the source s of a record. The error is errLeft when the record has
// another one by now: a member that leaves hands its inodes on before anybody is told
// that it has left, and its slot is another's only when nobody is inside its gate.
func (m *Member) readSource(r *record, s source, p []byte, off int64) (int, error) {
	if m == nil || !m.enter() {
		return 0, errLeft
	}
	defer m.exit()
	if r.load() != s {
		return 0, errLeft
	}
	return m.readAt(s, r.size, p, off)
}

// readAt reads a file of the image that is known to have the given size. The gate is
// held, and s is one of this member's.
func (m *Member) readAt(s source, size int64, p []byte, off int64) (int, error) {
	if err := m.failed.Load(); err != nil {
		return 0, *err
	}
	nid := s.nid()
	if !s.private() {
		e := m.fp.Load().Entry(s.entry())
		if e.Size != size {
			return 0, errIndex
		}
		nid = e.NID
	}
	in, err := m.image.Inode(nid)
	if err != nil {
		return 0, err
	}
	if in.Size != size || !in.IsRegular() {
		return 0, errIndex
	}
	m.pace.begin()
	defer m.pace.end()
	return in.ReadAt(p, off)
}

// isEnd is for the one error of a read that is none.
func isEnd(err error) bool { return err == io.EOF } //nolint:errorlint // io.EOF is returned bare by contract

// errIndex says that an entry of an index could not be read from disk, or is not of
// the image: what it is an index of has changed.
var errIndex = errors.New("its fingerprints cannot be read, or are not those of the image")

// readOther reads from the other backings, after the first failed for the reason
// given, until one can be read.
func (in Inode) readOther(p []byte, off int64, first backing, why error) (int, error) {
	d := in.domain
	failed := []backing{first}
	errs := []error{fmt.Errorf("image %s: %w", first.member.tag, why)}
	id, ok := in.identity()
	if !ok {
		return 0, errs[0]
	}
	for _, b := range d.backings(&id) {
		if b.source == first.source && b.member == first.member {
			continue
		}
		n, err := b.read(p, off)
		if err == nil || isEnd(err) {
			in.passOver(failed, b, errors.Join(errs...))
			return n, err
		}
		if !errors.Is(err, errLeft) {
			failed = append(failed, b)
			errs = append(errs, fmt.Errorf("image %s: %w", b.member.tag, err))
		}
	}
	return 0, errors.Join(errs...)
}

// backings lists all that an inode can be read from, in the order to try them.
func (d *Domain) backings(id *identity) (list []backing) {
	for _, m := range d.members.Load().joined {
		if !m.enter() {
			continue
		}
		for b := range m.backings(id) {
			b.bad = d.bad.has(b.source)
			list = append(list, b)
		}
		m.exit()
	}
	slices.SortStableFunc(list, func(a, b backing) int {
		switch {
		case a.before(b):
			return -1
		case b.before(a):
			return 1
		}
		return 0
	})
	return list
}

// read reads a backing; its member has its slot for as long as it is inside.
func (b backing) read(p []byte, off int64) (int, error) {
	m := b.member
	if !m.enter() {
		return 0, errLeft
	}
	defer m.exit()
	return m.readAt(b.source, b.size, p, off)
}

// passOver puts backings behind the one that could be read, which is the source from
// now on, and reports it when they were not there before.
func (in Inode) passOver(failed []backing, good backing, why error) {
	d := in.domain
	d.mu.Lock()
	joined := d.members.Load().joined
	changed := false
	for _, b := range failed {
		if slices.Contains(joined, b.member) && d.bad.note(b.source) {
			changed = true
		}
	}
	if slices.Contains(joined, good.member) {
		d.bad.good(good.source)
		good.bad = false
		if in.rec.load() == failed[0].source { // else it was given another one meanwhile
			in.rec.set(good)
		}
	}
	d.mu.Unlock()
	if changed && d.onFailure != nil {
		d.onFailure(in, why)
	}
}

// Content is the bytes of a content of a domain, whether or not the kernel knows it.
type Content struct {
	domain *Domain
	id     identity
}

// Content returns the content of a key, which images of the domain may have or not.
func (d *Domain) Content(k Key) Content { return Content{d, identity{key: k}} }

// ReadAt reads as Inode.ReadAt does, but looks for the files at every call.
func (c Content) ReadAt(p []byte, off int64) (int, error) {
	if off >= c.id.key.Size {
		return 0, io.EOF
	}
	var errs []error
	for _, b := range c.domain.backings(&c.id) {
		n, err := b.read(p, off)
		if err == nil || isEnd(err) {
			return n, err
		}
		if !errors.Is(err, errLeft) {
			errs = append(errs, fmt.Errorf("image %s: %w", b.member.tag, err))
		}
	}
	if len(errs) == 0 {
		return 0, ErrNoBacking
	}
	return 0, errors.Join(errs...)
}
