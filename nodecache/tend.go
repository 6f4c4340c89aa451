package nodecache

import (
	"errors"
	"math"
	"time"
)

const (
	// tendEvery is how often the store looks at the disk by itself.
	tendEvery = time.Minute
	// unusedFor is how long an image that nothing forces out stays after its last
	// use: what starts again and again finds it.
	unusedFor = 2 * time.Minute
)

// Tend keeps the store within its limits until Close, in the background: when an
// image is not used any more and once a minute it evicts what is above
// [Config.LimitBytes] or in the reserve, and while less than
// [Config.EvictBelowBytes] are free what nobody used for two minutes. Start it
// when all that is wanted is held; nothing is evicted before but by pulls.
func (s *Store) Tend() error {
	if err := s.begin(); err != nil {
		return err
	}
	go func() {
		defer s.end()
		tick := time.NewTicker(s.tendEvery)
		defer tick.Stop()
		for {
			woken := s.tending
			if s.tend() {
				// Some file systems tell of what is free only later: before that,
				// another look would evict more than it must.
				woken = nil
			}
			select {
			case <-tick.C:
			case <-woken:
			case <-s.life.Done():
				return
			}
		}
	}()
	return nil
}

// wakeTending has Tend look soon.
func (s *Store) wakeTending() {
	select {
	case s.tending <- struct{}{}:
	default:
	}
}

// tend is one round of Tend, and tells whether it evicted anything. What can't be
// done now may be the next time; OnEvict is told of it.
func (s *Store) tend() bool {
	s.noteUses()
	s.space.Lock()
	defer s.space.Unlock()
	x, err := s.shortage(0)
	if err != nil {
		return false
	}
	_, freed, _ := s.evictUpTo(x.bytes(), 0)
	if freed == 0 && s.evictBelow > 0 {
		_, freed, _ = s.evictUpTo(s.evictBelow-x.free, unusedFor)
	}
	return freed > 0
}

// evictUpTo is evictBytes that evicts what it can even if that is too little.
// s.space is held.
func (s *Store) evictUpTo(bytes int64, age time.Duration) (list []*entry, freed int64, err error) {
	if bytes <= 0 {
		return nil, 0, nil
	}
	all, err := s.evictable(age)
	for _, e := range all {
		if freed >= bytes {
			break
		}
		n, failed := s.evict(e)
		err = errors.Join(err, failed)
		if n > 0 {
			freed += n
			list = append(list, e)
		}
	}
	return list, freed, err
}

// Evicted is what [Store.Evict] has done.
type Evicted struct {
	Images int   `json:"images"`
	Bytes  int64 `json:"bytes"` // that they took on the disk, with prefetch lists
}

// Evict evicts images that nobody uses and that are not pinned, the one unused
// for the longest first, until the store takes at most target bytes on the disk;
// all of them if target is 0, and then the prefetch lists of what is not there, too.
func (s *Store) Evict(target int64) (Evicted, error) {
	if err := s.begin(); err != nil {
		return Evicted{}, err
	}
	defer s.end()
	s.space.Lock()
	defer s.space.Unlock()
	over := int64(math.MaxInt64)
	if target > 0 {
		now, _, err := s.used()
		if err != nil {
			return Evicted{}, err
		}
		over = now - target
	}
	list, freed, err := s.evictUpTo(over, 0)
	if target <= 0 {
		n, dropErr := s.dropOrders()
		freed, err = freed+n, errors.Join(err, dropErr)
	}
	return Evicted{Images: len(list), Bytes: freed}, err
}
