package fusefs

import "sync/atomic"

// mergedPage is how many merged nodes have their pointers together: 4 KiB.
const mergedPage = 512

// mergedTable finds merged nodes by their number, without a lock. Writers hold the
// lock of mergedNodes. A page goes when all its numbers were given out and none is
// in use.
type mergedTable struct {
	pages atomic.Pointer[[]atomic.Pointer[mergedPointers]] // replaced when it is full
	used  []uint16                                         // by page
}

type mergedPointers [mergedPage]atomic.Pointer[merged]

func (t *mergedTable) get(number uint64) *merged {
	pages := t.pages.Load()
	if pages == nil || number/mergedPage >= uint64(len(*pages)) {
		return nil
	}
	page := (*pages)[number/mergedPage].Load()
	if page == nil {
		return nil
	}
	return page[number%mergedPage].Load()
}

// add adds the node of a number, which is greater than that of the last.
func (t *mergedTable) add(number uint64, n *merged) {
	at := int(number / mergedPage)
	if at >= len(t.used) {
		t.used = append(t.used, make([]uint16, at+1-len(t.used))...)
		t.grow(at + 1)
	}
	page := &(*t.pages.Load())[at]
	if page.Load() == nil {
		page.Store(new(mergedPointers))
	}
	t.used[at]++
	page.Load()[number%mergedPage].Store(n)
}

// grow makes room for n pages.
func (t *mergedTable) grow(n int) {
	var old []atomic.Pointer[mergedPointers]
	if p := t.pages.Load(); p != nil {
		old = *p
	}
	if n <= len(old) {
		return
	}
	pages := make([]atomic.Pointer[mergedPointers], max(2*len(old), n, 4))
	for i := range old {
		pages[i].Store(old[i].Load())
	}
	t.pages.Store(&pages)
}

// remove takes out a node, and tells whether its page went with it; next is the number
// that the next one gets.
func (t *mergedTable) remove(number, next uint64) bool {
	at := number / mergedPage
	page := &(*t.pages.Load())[at]
	page.Load()[number%mergedPage].Store(nil)
	t.used[at]--
	if t.used[at] > 0 || next < (at+1)*mergedPage {
		return false
	}
	page.Store(nil)
	return true
}

// each calls f with every node until it answers false.
func (t *mergedTable) each(f func(*merged) bool) {
	pages := t.pages.Load()
	if pages == nil {
		return
	}
	for i := range *pages {
		if page := (*pages)[i].Load(); page != nil {
			for k := range page {
				if n := page[k].Load(); n != nil && !f(n) {
					return
				}
			}
		}
	}
}
