package nodecache

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// minLazy is the size in bytes below which an image is pulled at once: a few requests'
// worth.
const minLazy = 8 << 20

// lazyBlob is what a [Blob] reads while its transfer runs.
type lazyBlob struct {
	transfer *transfer
	// ctx ends when the image is given up.
	ctx     context.Context
	abandon context.CancelCauseFunc
}

// ready returns when the n bytes at off are in the file, and verified to be whatever
// the registry sent, no more.
func (l *lazyBlob) ready(off, n int64) error {
	t := l.transfer
	if t.complete.Load() {
		return nil
	}
	return t.ensure(l.ctx, off, n)
}

// openLazy opens the image of a transfer, whose user it becomes. It returns nil when the
// transfer has ended well meanwhile.
func (s *Store) openLazy(ref reference, rec record, t *transfer) (*Image, error) {
	path := s.dir.blob(rec.Blob) // where it will be
	fd, direct, err := t.openData()
	if err != nil || fd < 0 {
		return nil, err
	}
	b, err := newBlob(fd, path, direct, false)
	if err != nil {
		return nil, err
	}
	lazy := &lazyBlob{transfer: t}
	lazy.ctx, lazy.abandon = context.WithCancelCause(s.life)
	b.lazy = lazy
	full := ref
	full.digest = rec.Resolved
	s.add(imageID(rec.Blob))
	files := newOpened([]*Blob{b})
	files.lazy = lazy
	return &Image{
		store:     s,
		id:        imageID(rec.Blob),
		reference: full.String(),
		digest:    rec.Blob.String(),
		sidecars:  filepath.Join(s.dir.blobs, rec.Blob.Encoded()),
		take:      s.takeOf(rec.Blob),
		files:     files,
	}, nil
}

// openData opens the file of the blob once more. fd is -1 when the transfer has ended.
func (t *transfer) openData() (fd int, direct bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return -1, false, t.err
	}
	fd, direct, err = openDirect("/proc/self/fd/"+strconv.Itoa(int(t.part.data.Fd())), 0)
	if err != nil {
		return -1, false, fmt.Errorf("open %s: %w", t.what, err)
	}
	return fd, direct, nil
}

// drop ends the use of a transfer.
func (l *lazyBlob) drop() {
	l.abandon(ErrInterrupted)
	l.transfer.store.leave(l.transfer, true)
}

// closedChannel is for what is complete from the start.
var closedChannel = func() <-chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}()

// Complete tells whether all of the image is on the node and was checked.
func (i *Image) Complete() bool {
	l := i.files.lazy
	return l == nil || l.transfer.complete.Load()
}

// Settled is closed when the image is complete, or spoiled.
func (i *Image) Settled() <-chan struct{} {
	if l := i.files.lazy; l != nil {
		return l.transfer.verdict
	}
	return closedChannel
}

// Spoiled returns an error that wraps [ErrDigestMismatch], and names both digests, when
// the bytes of a lazy image turned out to be others than its digest says: all its reads
// fail. What is acquired later is another image, with another Take.
func (i *Image) Spoiled() error {
	l := i.files.lazy
	if l == nil {
		return nil
	}
	l.transfer.mu.Lock()
	defer l.transfer.mu.Unlock()
	return l.transfer.spoiled
}

// Trouble returns why the last request for bytes of a lazy image failed, while none has
// brought some since. Reads of what is on the node are not affected.
func (i *Image) Trouble() error {
	l := i.files.lazy
	if l == nil || l.transfer.complete.Load() {
		return nil
	}
	l.transfer.mu.Lock()
	defer l.transfer.mu.Unlock()
	return l.transfer.trouble
}

// Progress returns how many of the image's bytes are on the node, in whole chunks.
func (i *Image) Progress() (have, size int64) {
	for _, b := range i.files.blobs {
		size += b.size
	}
	l := i.files.lazy
	if l == nil || l.transfer.complete.Load() {
		return size, size
	}
	l.transfer.mu.Lock()
	defer l.transfer.mu.Unlock()
	return min(int64(l.transfer.have)*chunkSize, size), size
}

// Take tells apart images of one ID of which one was spoiled: equal ID and Take, equal
// bytes.
func (i *Image) Take() uint64 { return i.take }

// takeOf is how often a blob was spoiled.
func (s *Store) takeOf(d digest.Digest) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takes[d]
}

func (s *Store) spoil(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.takes == nil {
		s.takes = make(map[digest.Digest]uint64)
	}
	s.takes[d]++
}

// UseCredentials gives a lazy image that is not complete other credentials, which are
// tried before those that it has. The error wraps [ErrInvalidCredentials].
func (i *Image) UseCredentials(c Credentials) error {
	l := i.files.lazy
	if l == nil || l.transfer.complete.Load() {
		return nil
	}
	if len(c.DockerConfig) == 0 && i.store.registries.keys.wanted(c.Tokens) == nil {
		return nil
	}
	ref, err := parseReference(i.reference)
	if err != nil {
		return err
	}
	reg, err := i.store.newRegistry(ref, c)
	if err != nil {
		return err
	}
	l.transfer.addSource(reg)
	return nil
}

// Abandon makes reads of a lazy image that wait for its registry fail with
// [ErrInterrupted], and later ones that would have to. It is for all clones of the image.
func (i *Image) Abandon() {
	if l := i.files.lazy; l != nil {
		l.abandon(ErrInterrupted)
	}
}
