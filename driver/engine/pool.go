package engine

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// pool holds things by key that are made by the first who needs them and unmade
// by the last who lets go. Making and unmaking one key is serial; different keys
// do not wait for each other.
//
// LOCK ORDER: item.busy before pool.mu.
type pool[K comparable, V any] struct {
	mu    sync.Mutex
	items map[K]*item[K, V] // GUARDED_BY(mu)

	destroy func(V) error
}

// An item is in the pool while refs > 0 or made.
type item[K comparable, V any] struct {
	key  K
	refs int           // GUARDED_BY(pool.mu)
	busy chan struct{} // a lock that can be waited for with a context
	made bool          // GUARDED_BY(busy)
	val  V             // written under busy while !made; not changed while made
}

// newPool makes a pool whose things are unmade by destroy, called once for each
// that was made.
func newPool[K comparable, V any](destroy func(V) error) *pool[K, V] {
	return &pool[K, V]{items: make(map[K]*item[K, V]), destroy: destroy}
}

// acquire returns the item of a key, made by create if need be. The caller owes
// one release for it. Errors: create's, or the cause of ctx's end.
func (p *pool[K, V]) acquire(ctx context.Context, key K, create func() (V, error)) (*item[K, V], error) {
	p.mu.Lock()
	it := p.items[key]
	if it == nil {
		it = &item[K, V]{key: key, busy: make(chan struct{}, 1)}
		p.items[key] = it
	}
	it.refs++
	p.mu.Unlock()

	select {
	case it.busy <- struct{}{}:
	case <-ctx.Done():
		// The last to go unmakes it, even one that never had it.
		go func() { _ = p.release(it) }()
		return nil, context.Cause(ctx)
	}
	defer func() { <-it.busy }()
	if it.made {
		return it, nil
	}
	v, err := create()
	if err != nil {
		p.drop(it)
		return nil, err
	}
	it.val, it.made = v, true
	return it, nil
}

// release lets go of an item; the last one unmakes it and returns destroy's error.
func (p *pool[K, V]) release(it *item[K, V]) error {
	it.busy <- struct{}{}
	defer func() { <-it.busy }()
	if !p.drop(it) || !it.made {
		return nil
	}
	err := p.destroy(it.val)
	var none V
	it.made, it.val = false, none
	p.mu.Lock()
	defer p.mu.Unlock()
	if it.refs == 0 {
		delete(p.items, it.key)
	}
	return err
}

// drop takes back one reference and tells whether it was the last. An item that
// is not made leaves the pool then. it.busy is held.
func (p *pool[K, V]) drop(it *item[K, V]) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	it.refs--
	if it.refs == 0 && !it.made {
		delete(p.items, it.key)
	}
	return it.refs == 0
}

// snapshot returns what is made, but for what is just being made or unmade.
func (p *pool[K, V]) snapshot() []V {
	p.mu.Lock()
	items := slices.Collect(maps.Values(p.items))
	p.mu.Unlock()
	var list []V
	for _, it := range items {
		select {
		case it.busy <- struct{}{}:
			if it.made {
				list = append(list, it.val)
			}
			<-it.busy
		default:
		}
	}
	return list
}
