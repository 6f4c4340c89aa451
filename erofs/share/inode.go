package share

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
)

// Inode is a shared inode: the one file in memory of every file with its content.
type Inode struct {
	domain  *Domain
	index   uint64
	size    int64
	shared  bool // key is its identity, else private
	key     Key
	private privateKey

	// nlookup counts the kernel's references. GUARDED_BY(domain.mu)
	nlookup uint64

	// backings is replaced, never changed, by writers that hold domain.mu.
	backings atomic.Pointer[[]backing]

	// end is where the last read ended.
	end atomic.Int64

	use Use
}

// backing is a regular file of an image that holds an inode's bytes.
type backing struct {
	member *Member
	nid    uint64
	cost   uint8 // fingerprint.File.Cost
	failed bool  // could not be read when another could
}

// before orders backings: the active one is the first.
func (b backing) before(c backing) bool {
	if b.failed != c.failed {
		return c.failed
	}
	return b.cost < c.cost
}

// Index is the inode's number in its domain: dense, stable and never used twice.
func (in *Inode) Index() uint64 { return in.index }

// Size is the size of the content in bytes, always > 0.
func (in *Inode) Size() int64 { return in.size }

// Shared tells whether other images' files can be this inode too.
func (in *Inode) Shared() bool { return in.shared }

// Use is what the kernel may hold of this inode; its server keeps it.
func (in *Inode) Use() *Use { return &in.use }

// Follows tells whether a read at off goes on where the last one ended, and notes
// that this one ends at end.
func (in *Inode) Follows(off, end int64) bool { return in.end.Swap(end) == off }

// Of tells whether a file of the image is this inode.
func (in *Inode) Of(m *Member) bool {
	return slices.ContainsFunc(in.loadBackings(), func(b backing) bool { return b.member == m })
}

// Backings is the number of files, over all images of the domain, that are this
// inode: what an unshared page cache would hold it as many times.
func (in *Inode) Backings() int { return len(in.loadBackings()) }

// Path is the inode's name in the content mount, an absolute path.
func (in *Inode) Path() string {
	if in.shared {
		return ContentPath(in.key)
	}
	return PrivatePath(in.private.tag, in.private.nid)
}

// ReadAt reads from the backing that costs least to decode, of equal ones the first
// to join. One that fails is passed over, at once and by later reads, as long as
// another can be read. It keeps the contract of io.ReaderAt.
//
// Errors: ErrNoBacking, or those of every backing joined, each with its image.
func (in *Inode) ReadAt(p []byte, off int64) (int, error) {
	if off >= in.size {
		return 0, io.EOF
	}
	var failed []backing
	var errs []error
	for _, b := range in.loadBackings() {
		n, err := b.member.ReadAt(b.nid, p, off)
		if err == nil || err == io.EOF { //nolint:errorlint // io.EOF is returned bare by contract
			if len(failed) > 0 {
				in.passOver(failed, b, errors.Join(errs...))
			}
			return n, err
		}
		if !errors.Is(err, errLeft) {
			failed = append(failed, b)
			errs = append(errs, fmt.Errorf("image %s: %w", b.member.tag, err))
		}
	}
	if len(errs) == 0 {
		return 0, ErrNoBacking
	}
	return 0, errors.Join(errs...)
}

// passOver puts backings behind the one that could be read, and reports it when they
// were not there before.
func (in *Inode) passOver(failed []backing, good backing, why error) {
	d := in.domain
	d.mu.Lock()
	changed := false
	list := slices.Clone(in.loadBackings())
	for i, b := range list {
		switch {
		case b == good:
			list[i].failed = false
		case slices.Contains(failed, b):
			list[i].failed = true
			changed = changed || !b.failed
		}
	}
	in.setBackings(list)
	d.mu.Unlock()
	if changed && d.onFailure != nil {
		d.onFailure(in, why)
	}
}

func (in *Inode) loadBackings() []backing {
	if p := in.backings.Load(); p != nil {
		return *p
	}
	return nil
}

// addBacking adds one behind those that cost as much; domain.mu is held.
func (in *Inode) addBacking(b backing) {
	in.setBackings(append(slices.Clone(in.loadBackings()), b))
}

// setBackings takes the list, which it sorts; domain.mu is held.
func (in *Inode) setBackings(list []backing) {
	slices.SortStableFunc(list, func(a, b backing) int {
		switch {
		case a.before(b):
			return -1
		case b.before(a):
			return 1
		}
		return 0
	})
	in.backings.Store(&list)
}

// removeBackings takes out those of m and tells whether there were any;
// domain.mu is held.
func (in *Inode) removeBackings(m *Member) bool {
	if !in.Of(m) {
		return false
	}
	list := slices.DeleteFunc(slices.Clone(in.loadBackings()), func(b backing) bool { return b.member == m })
	in.backings.Store(&list)
	return true
}
