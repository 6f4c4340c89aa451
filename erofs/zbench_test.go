package erofs

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
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
// stream is kept from one step to the next. All reads are fit for O_DIRECT.
func TestSequentialReadsOnce(t *testing.T) {
	for _, size := range []string{"-C4096", "-C65536", "-C1048576"} {
		data := zBytes(t, images.NewestMkfs(t), "-zlz4", size)
		im := openBytes(t, data)
		device := &alignedReader{t: t, r: bytes.NewReader(data)}
		im.r = device // metadata are read by the cache's own reader
		var in *Inode
		if err := im.Walk(func(name string, i *Inode) error {
			if name == "program" {
				in = i
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 64<<10)
		for off := int64(0); off < in.Size; off += int64(len(p)) {
			if _, err := in.ReadAt(p, off); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		if device.bytes == 0 || device.bytes > in.Size*5/4 {
			t.Errorf("%s: read %d bytes from the device for a file of %d, compressed", size, device.bytes, in.Size)
		}
		if most := in.Size>>12 + 1; device.calls > most {
			t.Errorf("%s: %d reads for a file of %d bytes", size, device.calls, in.Size)
		}
	}
}

// alignedReader is a device that takes only what O_DIRECT takes.
type alignedReader struct {
	t     *testing.T
	r     *bytes.Reader
	bytes int64
	calls int64
}

func (a *alignedReader) ReadAt(p []byte, off int64) (int, error) {
	a.bytes += int64(len(p))
	a.calls++
	if address := reflect.ValueOf(p).Pointer(); (uintptr(off)|uintptr(len(p))|address)%4096 != 0 {
		a.t.Errorf("read of %d bytes at %d to %#x is not aligned", len(p), off, address)
	}
	return a.r.ReadAt(p, off)
}

// bytesOf returns all of the device.
func (a *alignedReader) bytesOf() []byte {
	b := make([]byte, a.r.Size())
	if err := readFull(a.r, b, 0); err != nil {
		a.t.Fatal(err)
	}
	return b
}
