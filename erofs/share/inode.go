package share

import (
	"errors"
	"fmt"
	"io"
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

	// read is set by the first read: only then the kernel can hold pages of it.
	read atomic.Bool
}

// backing is a regular file of an image that holds an inode's bytes.
type backing struct {
	member *Member
	nid    uint64
}

// Index is the inode's number in its domain: dense, stable and never used twice.
func (in *Inode) Index() uint64 { return in.index }

// Size is the size of the content in bytes, always > 0.
func (in *Inode) Size() int64 { return in.size }

// Shared tells whether other images' files can be this inode too.
func (in *Inode) Shared() bool { return in.shared }

// WasRead tells whether anyone has read from this inode yet.
func (in *Inode) WasRead() bool { return in.read.Load() }

// Follows tells whether a read at off goes on where the last one ended, and notes
// that this one ends at end.
func (in *Inode) Follows(off, end int64) bool { return in.end.Swap(end) == off }

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

// ReadAt reads from the first backing that can supply the bytes; a backing that
// fails is passed over. It keeps the contract of io.ReaderAt.
//
// Errors: ErrNoBacking, or those of every backing joined, each with its image.
func (in *Inode) ReadAt(p []byte, off int64) (int, error) {
	if !in.read.Load() {
		in.read.Store(true)
	}
	if off >= in.size {
		return 0, io.EOF
	}
	var errs []error
	for _, b := range in.loadBackings() {
		n, err := b.member.ReadAt(b.nid, p, off)
		if err == nil || err == io.EOF { //nolint:errorlint // io.EOF is returned bare by contract
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

func (in *Inode) loadBackings() []backing {
	if p := in.backings.Load(); p != nil {
		return *p
	}
	return nil
}

// addBacking appends; domain.mu is held.
func (in *Inode) addBacking(b backing) {
	old := in.loadBackings()
	list := append(old[:len(old):len(old)], b)
	in.backings.Store(&list)
}

// removeBackings takes out those of m and tells whether there were any;
// domain.mu is held.
func (in *Inode) removeBackings(m *Member) bool {
	old := in.loadBackings()
	list := make([]backing, 0, len(old))
	for _, b := range old {
		if b.member != m {
			list = append(list, b)
		}
	}
	if len(list) == len(old) {
		return false
	}
	in.backings.Store(&list)
	return true
}
