package nodecache

import (
	"errors"
	"io/fs"
	"slices"
	"time"
)

// Eviction is an image that was taken out of the store, or should have been.
type Eviction struct {
	ID         string   // Image.ID
	References []string // that led to it
	Bytes      int64    // that it took on the disk
	LastUse    time.Time
	Err        error // why it could not be removed
}

// evictBytes evicts images that nobody uses, that are not pinned and that were
// used no later than age ago, the one first that is so for the longest, until
// they took so many bytes on the disk. If all of them do not, none is evicted.
// One that can't be removed is passed over; err says so. s.space is held.
func (s *Store) evictBytes(bytes int64, age time.Duration) (freed int64, err error) {
	list, err := s.evictable(age)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range list {
		sum += e.allocated
	}
	if sum < bytes {
		return 0, nil
	}
	for _, e := range list {
		if freed >= bytes {
			break
		}
		n, failed := s.evict(e)
		freed += n
		err = errors.Join(err, failed)
	}
	return freed, err
}

// evictable lists what may be evicted, in order.
func (s *Store) evictable(age time.Duration) ([]*entry, error) {
	all, _, err := s.entries()
	if err != nil {
		return nil, err
	}
	list := all[:0]
	for _, e := range all {
		if !e.pinned && !s.inUse(e.id) && (age == 0 || time.Since(e.used) >= age) {
			list = append(list, e)
		}
	}
	return list, nil
}

// evict removes an entry, unless somebody uses or pinned it meanwhile: then it
// frees 0 bytes, which is no error. It returns when the space is free: who holds
// the image for its pages only has let go of it.
//
// The blob goes first: without it the other files mean nothing, and repair
// removes them. Nothing is synced, because each file is complete by itself.
func (s *Store) evict(e *entry) (freed int64, err error) {
	resting, ok := s.beginEviction(e.id)
	if !ok {
		return 0, nil
	}
	defer s.endEviction(e.id)
	if s.pinned(e) {
		return 0, nil
	}
	if resting && s.letGo != nil {
		s.letGo(e.id)
	}
	if s.held(e.id) {
		return 0, nil
	}
	err = s.removeEntry(e)
	if s.onEvict != nil {
		s.onEvict(Eviction{ID: e.id, References: e.refs, Bytes: e.allocated, LastUse: e.used, Err: err})
	}
	if err != nil {
		return 0, err
	}
	s.evictions.Add(1)
	return e.allocated, nil
}

func (s *Store) removeEntry(e *entry) error {
	var paths []string
	if e.blob {
		paths = append(paths, s.dir.blob(e.digest))
	}
	paths = slices.Concat(paths, e.parts, e.sidecars, e.records)
	for _, path := range paths {
		if err := s.disk.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// beginEviction lets nobody new have a hold of an image until endEviction. ok is
// false while it is in use; resting says that it is held all the same.
func (s *Store) beginEviction(id string) (resting, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.useOf(id)
	if u.inUse() || u.evicting != nil {
		return false, false
	}
	u.evicting = make(chan struct{})
	return u.holds > 0, true
}

func (s *Store) endEviction(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uses[id]
	close(u.evicting)
	u.evicting = nil
	if u.holds == 0 {
		delete(s.uses, id)
	}
}

// held tells whether anybody still has the image's files open.
func (s *Store) held(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uses[id]
	return u != nil && u.holds > 0
}
