package erofs

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// largest returns the biggest file of text and programs in an image of zTree.
func largest(b *testing.B, im *Image) *Inode {
	b.Helper()
	var best *Inode
	err := im.Walk(func(name string, in *Inode) error {
		if name == "program" || name == "text" && best == nil {
			best = in
		}
		return nil
	})
	if err != nil || best == nil || !best.Layout.Compressed() {
		b.Fatalf("no compressed file: %v", err)
	}
	return best
}

// BenchmarkCompressedSequential reads an LZ4 file from memory in order.
func BenchmarkCompressedSequential(b *testing.B) {
	for _, size := range []string{"-C4096", "-C65536", "-C1048576"} {
		data := zBytes(b, images.NewestMkfs(b), "-zlz4hc,9", size)
		in := largest(b, openBytes(b, data))
		for _, step := range []int{1 << 20, 128 << 10, 16 << 10} {
			b.Run(fmt.Sprintf("%s/step%dK", size, step>>10), func(b *testing.B) {
				p := make([]byte, step)
				b.SetBytes(in.Size)
				b.ReportAllocs()
				for b.Loop() {
					for off := int64(0); off < in.Size; off += int64(step) {
						if _, err := in.ReadAt(p, off); err != nil && err != io.EOF {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

// BenchmarkPlainCompressed reads incompressible data of a compressed inode.
func BenchmarkPlainCompressed(b *testing.B) {
	data := zBytes(b, images.NewestMkfs(b), "-zlz4")
	im := openBytes(b, data)
	var in *Inode
	err := im.Walk(func(name string, i *Inode) error {
		if name == "random-text" {
			in = i
		}
		return nil
	})
	if err != nil || in == nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := in.ReadAt(p, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSequentialReadsOnce reads a file of large pclusters in small steps: the
// bytes read from the device stay near the size of the pclusters, because a
// stream is kept from one step to the next.
func TestSequentialReadsOnce(t *testing.T) {
	data := zBytes(t, images.NewestMkfs(t), "-zlz4", "-C1048576")
	im := openBytes(t, data)
	counter := &countingReader{r: bytes.NewReader(data)}
	im.r = counter
	var in *Inode
	if err := im.Walk(func(name string, i *Inode) error {
		if name == "program" {
			in = i
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	counter.n = 0
	p := make([]byte, 64<<10)
	for off := int64(0); off < in.Size; off += int64(len(p)) {
		if _, err := in.ReadAt(p, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	if most := in.Size * 5 / 4; counter.n == 0 || counter.n > most {
		t.Errorf("read %d bytes from the device for a file of %d, compressed", counter.n, in.Size)
	}
}

type countingReader struct {
	r *bytes.Reader
	n int64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	c.n += int64(len(p))
	return c.r.ReadAt(p, off)
}
