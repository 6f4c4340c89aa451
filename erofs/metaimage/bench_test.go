package metaimage_test

import (
	"os"
	"runtime"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/metaimage"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// BenchmarkWrite writes the META of the Go tree, 15,000 files, with the image in
// the page cache. The metrics are per inode of the image: the time, the size of
// META and the memory that is live at the end.
func BenchmarkWrite(b *testing.B) {
	_, err := os.Stat("/usr/local/go")
	images.Need(b, "/usr/local/go", err == nil)
	im := open(b, mkfs(b, "/usr/local/go"))
	var stats metaimage.Stats
	b.ReportAllocs()
	for b.Loop() {
		var out sink
		out.b = make([]byte, 0, 8<<20)
		if stats, err = metaimage.Write(b.Context(), &out, im, byNID); err != nil {
			b.Fatal(err)
		}
		runtime.KeepAlive(out)
	}
	inodes := float64(stats.Inodes)
	b.ReportMetric(float64(stats.Size)/inodes, "B/inode")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/inodes, "ns/inode")
}
