package metaimage_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// BenchmarkWrite writes the META of a real tree, 10,000 files, with the image in
// the page cache. The metrics are per inode of the image: the time, the size of
// META and the memory that is live at the end.
func BenchmarkWrite(b *testing.B) {
	var err error
	im := open(b, images.Build(b, images.NewestMkfs(b), nil, images.RealTree(b)))
	content := func(in *erofs.Inode) string { // as long as SHA-256 and size in hex
		return fmt.Sprintf("/%02x/%062x-%x", in.NID&0xff, in.NID, in.Size)
	}
	var stats metaimage.Stats
	b.ReportAllocs()
	for b.Loop() {
		var out sink
		out.b = make([]byte, 0, 8<<20)
		if stats, err = metaimage.Write(b.Context(), &out, im, content); err != nil {
			b.Fatal(err)
		}
		runtime.KeepAlive(out)
	}
	live := liveSink{base: heap()}
	if _, err := metaimage.Write(b.Context(), &live, im, content); err != nil {
		b.Fatal(err)
	}
	inodes := float64(stats.Inodes)
	b.ReportMetric(float64(live.held)/inodes, "held-B/inode")
	b.ReportMetric(float64(stats.Size)/inodes, "B/inode")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/inodes, "ns/inode")
}

// liveSink drops what is written and takes the size of the heap at the first
// write, when all that Write keeps is there.
type liveSink struct{ base, held int64 }

func (s *liveSink) WriteAt(p []byte, _ int64) (int, error) {
	if s.held == 0 {
		s.held = heap() - s.base
	}
	return len(p), nil
}

// heap is the number of bytes in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
