package fusefs

import (
	"testing"
	"unsafe"
)

func TestBuffersAreBoundedAlignedAndReused(t *testing.T) {
	var p bufferPool
	seen := make(map[*byte]bool)
	var all [][]byte
	for b := p.get(); b != nil; b = p.get() {
		if len(b) != requestSize || cap(b) != requestSize || uintptr(unsafe.Pointer(&b[0]))%requestSize != 0 {
			t.Fatalf("buffer of %d (%d) bytes at %p, want %d, aligned", len(b), cap(b), &b[0], requestSize)
		}
		if seen[&b[0]] {
			t.Fatal("a buffer was handed out twice")
		}
		seen[&b[0]] = true
		b[0], b[requestSize-1] = 1, 1
		all = append(all, b)
	}
	if len(all) != maxBuffers {
		t.Fatalf("%d buffers, want %d", len(all), maxBuffers)
	}
	for _, b := range all {
		p.put(b[:10])
	}
	if b := p.get(); &b[0] != &all[maxBuffers-1][0] || len(b) != requestSize {
		t.Error("the buffer used last, whole, is not the first to be used again")
	}
}
