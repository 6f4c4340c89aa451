package nodecache

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// use counts who holds an image, by its ID: every [Image] and its clones, and
// who waits for the image to be pulled.
//
// Invariant: 0 <= resting <= holds. An image is in use while resting < holds.
type use struct {
	holds   int
	resting int // those of holds that end when they are asked to: Image.Rest

	// evicting is not nil while the image is being evicted, and closed at the
	// end of that. Then resting == holds, and nobody new gets a hold.
	evicting chan struct{}
	noted    time.Time // when its last use was written down last
}

func (u *use) inUse() bool { return u.resting < u.holds }

// noteEvery bounds how old the written time of an image's last use is while it
// is in use, if a power cut ends that: [Store.Tend].
const noteEvery = time.Hour

// imageID is the Image.ID of a blob.
func imageID(d digest.Digest) string { return blobIDPrefix + d.Encoded() }

const (
	blobIDPrefix = "sha256-"
	pathIDPrefix = "file-"
)

// hold keeps an image from being evicted until release, which may be called
// more than once. It waits for the end of an eviction that is under way: look
// for the image's files after it.
func (s *Store) hold(ctx context.Context, id string) (release func(), err error) {
	for {
		s.mu.Lock()
		u := s.useOf(id)
		evicting := u.evicting
		if evicting == nil {
			first := !u.inUse()
			u.holds++
			s.mu.Unlock()
			if first {
				s.noteUse(id)
			}
			return sync.OnceFunc(func() { s.drop(id, false) }), nil
		}
		s.mu.Unlock()
		select {
		case <-evicting:
		case <-ctx.Done():
			return nil, fmt.Errorf("image %s is being evicted: %w", id, ended(ctx))
		}
	}
}

// Keep holds the image with this [Image.ID], of which the store may know nothing, so
// that it is not evicted until release. It is for whoever knows after a restart what
// will be wanted, before anything else is asked of the store: an eviction that is
// under way goes on.
func (s *Store) Keep(id string) (release func()) {
	s.add(id)
	return sync.OnceFunc(func() { s.drop(id, false) })
}

// add counts one more hold of an image that the caller holds already.
func (s *Store) add(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.useOf(id).holds++
}

// drop ends one hold; resting says of which kind.
func (s *Store) drop(id string, resting bool) {
	s.mu.Lock()
	u := s.useOf(id)
	was := u.inUse()
	u.holds--
	if resting {
		u.resting--
	}
	ended := was && !u.inUse()
	if u.holds == 0 && u.evicting == nil {
		delete(s.uses, id)
	}
	s.mu.Unlock()
	if ended {
		s.noteUse(id)
		s.wakeTending()
	}
}

// useOf returns the counts of an image; s.mu is held.
func (s *Store) useOf(id string) *use {
	u := s.uses[id]
	if u == nil {
		u = &use{}
		s.uses[id] = u
	}
	return u
}

// inUse tells whether an image is held by somebody who does not rest.
func (s *Store) inUse(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uses[id]
	return u != nil && u.inUse()
}

// noteUse writes down that an image is used now: as mtime of its blob, or of
// the sidecars of an image in place. It need not be durable at once, and where
// it fails the order of eviction is a little wrong.
func (s *Store) noteUse(id string) {
	s.mu.Lock()
	if u := s.uses[id]; u != nil {
		u.noted = time.Now()
	}
	s.mu.Unlock()
	if encoded, ok := strings.CutPrefix(id, blobIDPrefix); ok {
		touch(filepath.Join(s.dir.blobs, encoded))
		return
	}
	_ = s.eachName(s.dir.paths, func(name string) error {
		if strings.HasPrefix(name, id+".") {
			touch(filepath.Join(s.dir.paths, name))
		}
		return nil
	})
}

func touch(path string) {
	now := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, now, unix.AT_SYMLINK_NOFOLLOW)
}

// noteUses writes down again that what is in use is used.
func (s *Store) noteUses() {
	s.mu.Lock()
	var due []string
	for id, u := range s.uses {
		if u.inUse() && time.Since(u.noted) >= noteEvery {
			due = append(due, id)
		}
	}
	s.mu.Unlock()
	for _, id := range due {
		s.noteUse(id)
	}
}

// Rest says that this hold of the image is for nothing but what the holder has
// of it in memory: an eviction that wants the image asks for it back, see
// [Store.OnLetGo]. It must not be called after Release.
func (i *Image) Rest() { i.setResting(true) }

// Wake takes Rest back. The caller, or who waits for it, holds another image of
// the same ID, so that no eviction is under way.
func (i *Image) Wake() { i.setResting(false) }

func (i *Image) setResting(resting bool) {
	s := i.store
	s.mu.Lock()
	u := s.useOf(i.id)
	was := u.inUse()
	if i.released || i.resting == resting {
		s.mu.Unlock()
		return
	}
	i.resting = resting
	if resting {
		u.resting++
	} else {
		u.resting--
	}
	changed := was != u.inUse()
	s.mu.Unlock()
	if changed {
		s.noteUse(i.id)
		s.wakeTending()
	}
}

// OnLetGo sets who is asked to release all resting holds of an image, given by
// its ID. fn returns when that is done or can't be; it must call nothing of the
// store but Release. Set it before the first Acquire.
func (s *Store) OnLetGo(fn func(id string)) { s.letGo = fn }
