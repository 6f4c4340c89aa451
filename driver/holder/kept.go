package holder

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxBytes bounds what all items take, names, keys and meta with itemOverhead each.
	maxBytes     = 8 << 20
	itemOverhead = 256
	// reserved are descriptors of RLIMIT_NOFILE that items may not take: of the
	// connections, and of what is just coming.
	reserved = 256
)

// kept is all that a holder keeps. Its methods close no descriptor: closing may wait,
// for a file system. LOCK: mu guards all below, and is never held over a system call.
type kept struct {
	maxDescriptors int

	mu          sync.Mutex
	names       map[string]*entry
	order       []string // the names, sorted
	descriptors int
	bytes       int
}

// entry is what is kept under one name. It is there while it has a client or an item.
type entry struct {
	owner *peer
	freed chan struct{} // closed when owner goes
	items map[string]*item
	order []string // the keys, sorted

	changed bool      // by owner
	since   time.Time // when the last client that changed something went
}

// item is never changed.
type item struct {
	meta []byte
	fds  []int
}

func newKept() (*kept, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	if limit.Cur < limit.Max {
		raised := unix.Rlimit{Cur: limit.Max, Max: limit.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			limit.Cur = limit.Max
		}
	}
	most := int(min(limit.Cur, 1<<30)) - reserved
	return &kept{maxDescriptors: max(most, 0), names: make(map[string]*entry)}, nil
}

// claim gives the name to p. Where another has it, claim returns that one, and the
// channel that is closed when it goes.
func (k *kept) claim(name string, p *peer) (*peer, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.names[name]
	if e == nil {
		e = &entry{items: make(map[string]*item)}
		k.names[name] = e
		k.order = insert(k.order, name)
	}
	if e.owner != nil {
		return e.owner, e.freed
	}
	e.owner, e.freed, e.changed = p, make(chan struct{}), false
	return nil, nil
}

// release takes the name from its client.
func (k *kept) release(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.names[name]
	close(e.freed)
	e.owner, e.freed = nil, nil
	if e.changed {
		e.since = time.Now()
	}
	if len(e.items) == 0 {
		delete(k.names, name)
		k.order = remove(k.order, name)
	}
}

// put keeps an item, and returns the descriptors of the one that it replaces. Only the
// name's client calls it.
func (k *kept) put(name, key string, it *item) ([]int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.names[name]
	old := e.items[key]
	descriptors, bytes := k.descriptors+len(it.fds), k.bytes+cost(key, it)
	if old != nil {
		descriptors, bytes = descriptors-len(old.fds), bytes-cost(key, old)
	}
	// Until the old ones are closed all are open.
	if most := k.maxDescriptors; k.descriptors+len(it.fds) > most {
		return nil, fmt.Errorf("%w: %d descriptors are kept, and %d more are not allowed (RLIMIT_NOFILE)", ErrLimit, k.descriptors, len(it.fds))
	}
	if bytes > maxBytes {
		return nil, fmt.Errorf("%w: %d bytes are kept, %d would be more than %d", ErrLimit, k.bytes, bytes, maxBytes)
	}
	k.descriptors, k.bytes = descriptors, bytes
	e.changed = true
	e.items[key] = it
	if old == nil {
		e.order = insert(e.order, key)
		return nil, nil
	}
	return old.fds, nil
}

// drop forgets an item, and returns its descriptors. Only the name's client calls it.
func (k *kept) drop(name, key string) []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.names[name]
	e.changed = true
	old := e.items[key]
	if old == nil {
		return nil
	}
	k.descriptors -= len(old.fds)
	k.bytes -= cost(key, old)
	delete(e.items, key)
	e.order = remove(e.order, key)
	return old.fds
}

// next is the first item of a name after a key; nil: there is none. Its descriptors
// stay open while the name's client does not put or delete.
func (k *kept) next(name, after string) (string, *item) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.names[name]
	key, ok := following(e.order, after)
	if !ok {
		return "", nil
	}
	return key, e.items[key]
}

// list is what comes after a name and key: a name itself with key "", then its items.
func (k *kept) list(name, key string) *message {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.names[name]; e != nil {
		if next, ok := following(e.order, key); ok {
			it := e.items[next]
			m := e.describe(name)
			m.key, m.files, m.size = next, uint16(len(it.fds)), uint32(len(it.meta)) //nolint:gosec // MaxFiles and MaxMeta bound them
			return m
		}
	}
	next, ok := following(k.order, name)
	if !ok {
		return &message{kind: kindEnd}
	}
	return k.names[next].describe(next)
}

func (e *entry) describe(name string) *message {
	m := &message{kind: kindEntry, name: name}
	if e.owner != nil {
		m.claimed, m.pid = 1, e.owner.processID()
	}
	return m
}

// takeAll forgets everything, and returns all descriptors and the number of items.
func (k *kept) takeAll() (fds []int, items int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.names {
		for _, it := range e.items {
			fds = append(fds, it.fds...)
		}
		items += len(e.items)
		e.items, e.order = make(map[string]*item), nil
	}
	k.descriptors, k.bytes = 0, 0
	return fds, items
}

// abandoned forgets what is kept under the first name that has had no client for a time, or
// none that put or deleted anything: one that dies again and again serves nobody. It
// returns the name and the descriptors, or "".
func (k *kept) abandoned(after time.Duration) (name string, fds []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range k.order {
		e := k.names[name]
		if e.owner != nil || time.Since(e.since) < after {
			continue
		}
		for key, it := range e.items {
			fds = append(fds, it.fds...)
			k.bytes -= cost(key, it)
		}
		k.descriptors -= len(fds)
		delete(k.names, name)
		k.order = remove(k.order, name)
		return name, fds
	}
	return "", nil
}

func cost(key string, it *item) int {
	return itemOverhead + len(key) + len(it.meta) + 8*len(it.fds)
}

func insert(sorted []string, s string) []string {
	i, _ := slices.BinarySearch(sorted, s)
	return slices.Insert(sorted, i, s)
}

func remove(sorted []string, s string) []string {
	i, ok := slices.BinarySearch(sorted, s)
	if !ok {
		return sorted
	}
	return slices.Delete(sorted, i, i+1)
}

// following is the first that is greater than s.
func following(sorted []string, s string) (string, bool) {
	i, ok := slices.BinarySearch(sorted, s)
	if ok {
		i++
	}
	if i == len(sorted) {
		return "", false
	}
	return sorted[i], true
}
