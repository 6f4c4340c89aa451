package erofs

import (
	"os"
	"testing"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// benchImage is an image of the Go sources in memory-like page cache.
func benchImage(b *testing.B) *Image {
	b.Helper()
	f, err := os.Open(images.Build(b, images.NewestMkfs(b), nil, images.RealTree(b)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	im, err := Open(f, st.Size())
	if err != nil {
		b.Fatal(err)
	}
	return im
}

func BenchmarkWalk(b *testing.B) {
	im := benchImage(b)
	n := 0
	for b.Loop() {
		n = 0
		if err := im.Walk(func(string, *Inode) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/file")
}

func BenchmarkLookup(b *testing.B) {
	im := benchImage(b)
	root, err := im.Root()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		d, err := root.Lookup("net")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := im.Inode(d.NID); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadSmall(b *testing.B) {
	im := benchImage(b)
	var files []*Inode
	if err := im.Walk(func(_ string, in *Inode) error {
		if in.IsRegular() && in.Size < 32<<10 && len(files) < 1000 {
			files = append(files, in)
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 32<<10)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if n, err := files[i%len(files)].ReadAt(buf, 0); n == 0 && err != nil {
			b.Fatal(err)
		}
	}
}
