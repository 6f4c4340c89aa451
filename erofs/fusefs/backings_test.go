package fusefs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeKernel keeps the kernel's rules of backing ids.
type fakeKernel struct {
	t *testing.T

	mu    sync.Mutex
	next  int32
	nodes map[int32]nodeID // registered ids
	opens map[nodeID]int   // of the open nodes
	named map[nodeID]int32 // by them
	fail  error
}

func newFakeKernel(t *testing.T) (*fakeKernel, *backings) {
	k := &fakeKernel{t: t, nodes: make(map[int32]nodeID), opens: make(map[nodeID]int), named: make(map[nodeID]int32)}
	b := &backings{}
	b.init(k.register, k.unregister)
	return k, b
}

func (k *fakeKernel) register(node nodeID) (int32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return 0, k.fail
	}
	k.next++
	k.nodes[k.next] = node
	return k.next, nil
}

func (k *fakeKernel) unregister(id int32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	node, ok := k.nodes[id]
	if !ok {
		k.t.Errorf("backing id %d is given back twice", id)
	}
	if k.opens[node] > 0 && k.named[node] == id {
		k.t.Errorf("node %d is open, its backing id %d is given back", node, id)
	}
	delete(k.nodes, id)
}

// opened is what the kernel does with the answer to OPEN.
func (k *fakeKernel) opened(node nodeID, id int32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.nodes[id] != node {
		return fmt.Errorf("node %d: backing id %d is node %d's", node, id, k.nodes[id])
	}
	if k.opens[node] > 0 && k.named[node] != id {
		return fmt.Errorf("node %d: backing id %d, is open with %d: EBUSY", node, id, k.named[node])
	}
	k.named[node] = id
	k.opens[node]++
	return nil
}

// released is what it does before it sends RELEASE.
func (k *fakeKernel) released(node nodeID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.opens[node]--
}

func (k *fakeKernel) registered() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.nodes)
}

// waits tells whether the timer runs.
func (b *backings) waits() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.timer != nil
}

func TestOpensOfANodeNameOneBacking(t *testing.T) {
	k, b := newFakeKernel(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 2000 {
				node := nodeID(rand.IntN(4))
				id, err := b.open(node, 0)
				if err == nil {
					err = k.opened(node, id)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if rand.IntN(8) == 0 {
					b.drop(func(nodeID, *backingFile) bool { return true })
				}
				k.released(node)
				b.close(node, 0)
			}
		})
	}
	wg.Wait()
	if n := b.opened(); n != 0 {
		t.Errorf("%d nodes are open", n)
	}
	b.drop(func(nodeID, *backingFile) bool { return true })
	if n := k.registered(); n != 0 || b.unused != 0 || len(b.nodes) != 0 {
		t.Errorf("%d backing ids are left, %d of %d nodes unused", n, b.unused, len(b.nodes))
	}
}

// What is not opened again is given back in its time; what is open stays.
func TestUnusedBackingsAreGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, b := newFakeKernel(t)
		open := func(node nodeID) {
			t.Helper()
			if _, err := b.open(node, 0); err != nil {
				t.Fatal(err)
			}
		}
		open(1)
		open(2)
		b.close(2, 0)
		time.Sleep(keepUnused + time.Second)
		open(2) // the same again
		b.close(2, 0)
		if n := k.next; n != 2 {
			t.Errorf("%d backing ids were registered, want 2", n)
		}
		if n := k.registered(); n != 2 || b.opened() != 1 {
			t.Errorf("%d backing ids, %d open; want 2, 1", n, b.opened())
		}
		time.Sleep(2*keepUnused + time.Second)
		if n := k.registered(); n != 1 || b.waits() {
			t.Errorf("%d backing ids are left, timer runs %v; want that of the open node", n, b.waits())
		}
		b.close(1, 0)
		time.Sleep(2*keepUnused + time.Second)
		if n := k.registered(); n != 0 || b.waits() {
			t.Errorf("%d backing ids are left, timer runs %v", n, b.waits())
		}
		b.close(1, 0) // a RELEASE too many
		b.close(7, 0)
		if b.unused != 0 || b.opened() != 0 {
			t.Errorf("%d unused, %d open; want none", b.unused, b.opened())
		}
	})
}

func TestUnusedBackingsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, b := newFakeKernel(t)
		for node := range nodeID(maxUnused + 100) {
			if _, err := b.open(node, 0); err != nil {
				t.Fatal(err)
			}
			b.close(node, 0)
		}
		if n := k.registered(); n != maxUnused || b.unused != maxUnused {
			t.Errorf("%d backing ids, %d unused; want %d", n, b.unused, maxUnused)
		}
		time.Sleep(3 * keepUnused)
		if n := k.registered(); n != 0 {
			t.Errorf("%d backing ids are left", n)
		}
	})
}

// A failure is nobody's who comes later.
func TestBackingsThatCannotBeRegistered(t *testing.T) {
	k, b := newFakeKernel(t)
	k.fail = errors.New("no")
	if _, err := b.open(1, 0); !errors.Is(err, k.fail) {
		t.Errorf("error %v", err)
	}
	k.fail = nil
	if _, err := b.open(1, 0); err != nil || b.opened() != 1 {
		t.Errorf("after a failure: %v, %d open", err, b.opened())
	}
	b.close(1, 0)

	b.register = func(nodeID) (int32, error) { panic("hostile image") }
	func() {
		defer func() { _ = recover() }()
		_, _ = b.open(2, 0)
	}()
	b.register = k.register
	if _, err := b.open(2, 0); err != nil {
		t.Errorf("after a panic: %v", err)
	}
	b.close(2, 0)
	b.drop(func(nodeID, *backingFile) bool { return true })
}
