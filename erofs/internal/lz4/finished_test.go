package lz4

import "testing"

func TestFinished(t *testing.T) {
	// Three literals, a match of 6 bytes, then five literals.
	block := []byte{0x32, 'a', 'b', 'c', 3, 0, 0x50, 'd', 'e', 'f', 'g', 'h'}
	const size = 3 + 6 + 5
	for _, c := range []struct {
		name string
		src  []byte
		size int
		want bool
	}{
		{"whole", block, size, true},
		{"a byte of data left", block, size - 1, false},
		{"in the match", block, 5, false},
		{"before the last literals", block, 9, false},
		{"a byte of the block left", append(block[:len(block):len(block)], 0), size, false},
		{"a match announced", append(append(block[:6:6], 0x51), block[7:]...), size, false},
	} {
		var s State
		if n, err := s.Decode(make([]byte, c.size), 0, c.src); n != c.size || err != nil {
			t.Fatalf("%s: %d bytes, %v", c.name, n, err)
		}
		if got := s.Finished(c.src); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
}
