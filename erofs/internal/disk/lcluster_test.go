package disk

import (
	"encoding/binary"
	"testing"
)

func TestLclusterSizes(t *testing.T) {
	if got := binary.Size(MapHeader{}); got != MapHeaderSize {
		t.Errorf("MapHeader has %d bytes, not %d", got, MapHeaderSize)
	}
	if got := binary.Size(LclusterIndex{}); got != LclusterIndexSize {
		t.Errorf("LclusterIndex has %d bytes, not %d", got, LclusterIndexSize)
	}
	var h MapHeader
	h.Decode([]byte{1, 2, 3, 4, 5, 6, 7, 8})
	if want := (MapHeader{FragmentOff: 0x04030201, Advise: 0x0605, AlgorithmType: 7, ClusterBits: 8}); h != want {
		t.Errorf("MapHeader = %+v, want %+v", h, want)
	}
	var l LclusterIndex
	l.Decode([]byte{1, 2, 3, 4, 5, 6, 7, 8})
	if want := (LclusterIndex{Advise: 0x0201, ClusterOfs: 0x0403, BlkAddr: 0x08070605}); l != want || l.Delta0() != 0x0605 {
		t.Errorf("LclusterIndex = %+v, delta[0] %#x, want %+v", l, l.Delta0(), want)
	}
}
