package share_test

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// bigIndex is an index of n files, the first of them those of other indexes, too.
func bigIndex(n, first int) *fingerprint.Index {
	files := make([]fingerprint.File, n)
	sums := make([]fingerprint.Sum, n)
	for i := range files {
		files[i] = fingerprint.File{NID: uint64(i + 1), Size: 1000}
		sums[i] = bigSum(first + i)
	}
	return fingerprint.NewIndex(files, sums)
}

// bigSum is as even as a hash.
func bigSum(i int) (sum fingerprint.Sum) {
	x := uint64(i)
	for at := 0; at < len(sum); at += 8 {
		x = (x ^ x>>31) * 0x9e3779b97f4a7c15
		binary.LittleEndian.PutUint64(sum[at:], x^x>>29)
	}
	return sum
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What it costs that the kernel knows a million inodes of 50 images, in bytes each,
// and the time to look one up that it does not know, and one that it does.
func BenchmarkKnownInodes(b *testing.B) {
	const images, files = 50, 20_000
	var indexes []*fingerprint.Index
	for i := range images {
		indexes = append(indexes, bigIndex(files, i*files))
	}
	var paths [images * files]string
	for i := range paths {
		paths[i] = share.ContentPath(share.Key{Sum: bigSum(i), Size: 1000})
	}
	run := func(name string, f func(b *testing.B, d *share.Domain, path string)) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				d := share.NewDomain("d")
				before := heap()
				for i, ix := range indexes {
					if _, err := d.Join(nil, share.NewTag(fmt.Sprint(i)), ix); err != nil {
						b.Fatal(err)
					}
				}
				if name != "first" {
					for _, p := range paths {
						d.Find(p, 0)
					}
				}
				b.StartTimer()
				for _, p := range paths {
					f(b, d, p)
				}
				b.StopTimer()
				b.ReportMetric(float64(heap()-before)/float64(len(paths)), "B/inode")
				runtime.KeepAlive(d)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(paths)), "ns/inode")
		})
	}
	run("first", func(b *testing.B, d *share.Domain, path string) {
		b.Helper()
		if _, ok := d.Find(path, 0); !ok {
			b.Fatal(path)
		}
	})
	run("again", func(b *testing.B, d *share.Domain, path string) {
		b.Helper()
		if _, ok := d.Find(path, 0); !ok {
			b.Fatal(path)
		}
	})
}

// An inode that the kernel knows costs at most 64 bytes, one that it does not nothing.
func TestKnownInodesAreSmall(t *testing.T) {
	const files = 50_000
	ix := bigIndex(files, 0)
	d := share.NewDomain("d")
	before := heap()
	if _, err := d.Join(nil, share.NewTag("a"), ix); err != nil {
		t.Fatal(err)
	}
	if n := int64(heap() - before); n > 64<<10 {
		t.Errorf("an image of which the kernel knows nothing takes %d bytes", n)
	}
	for i := range files {
		if _, ok := d.Find(share.ContentPath(share.Key{Sum: bigSum(i), Size: 1000}), 0); !ok {
			t.Fatal(i)
		}
	}
	if n := float64(heap()-before) / files; n > 64 {
		t.Errorf("an inode that the kernel knows takes %.1f bytes, want at most 64", n)
	}
	for i := range uint64(files) {
		d.Forget(i, 1)
	}
	if n := int64(heap() - before); n > 64<<10 {
		t.Errorf("%d bytes are left of inodes that were forgotten", n)
	}
	runtime.KeepAlive(ix)
}

// An image that joins and leaves a domain of which the kernel knows a million inodes.
func BenchmarkJoinAndLeave(b *testing.B) {
	const images, files = 50, 20_000
	d := share.NewDomain("d")
	var last *fingerprint.Index
	for i := range images {
		last = bigIndex(files, i*files)
		if _, err := d.Join(nil, share.NewTag(fmt.Sprint(i)), last); err != nil {
			b.Fatal(err)
		}
		for j := range files {
			if _, ok := d.Find(share.ContentPath(share.Key{Sum: bigSum(i*files + j), Size: 1000}), 0); !ok {
				b.Fatal(i, j)
			}
		}
	}
	for b.Loop() {
		m, err := d.Join(nil, share.NewTag("again"), last)
		if err != nil {
			b.Fatal(err)
		}
		if n := len(m.Leave()); n != 0 {
			b.Fatal(n)
		}
	}
}

// BenchmarkAccount compares the indexes of 20 images of 20,000 files.
func BenchmarkAccount(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		d := share.NewDomain("d")
		for i := range 20 {
			if _, err := d.Join(nil, share.NewTag(fmt.Sprint(i)), bigIndex(20_000, i*10_000)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		if a := d.Account(); a.Contents != 210_000 {
			b.Fatal(a.Contents)
		}
	}
}
