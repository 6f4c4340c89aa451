package erofs

import (
	"math/bits"
	"reflect"
	"sync"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// zAlign is the alignment in memory, and of offsets and lengths, of what is
// read from a device, in bytes: that of O_DIRECT on any device.
const zAlign = 4096

// zBuffer is a buffer for compressed or decoded data: cap(b) is a power of two,
// the address of b a multiple of zAlign.
type zBuffer struct {
	b     []byte
	class uint // log2 of cap(b), less zBufferMinBits
}

const (
	zBufferMinBits = 13 // the smallest buffer has 8 KiB
	zBufferMaxBits = 24 // the largest has room for disk.PclusterMaxDecoded
)

// zBuffers has the free buffers of each size. At any time there are no more
// buffers than there have been concurrent calls since the last but one
// collection, and those that DecodedCaches hold.
var zBuffers [zBufferMaxBits - zBufferMinBits + 1]sync.Pool

// getBuffer returns a buffer of size bytes, 0 <= size <= 1<<zBufferMaxBits, of
// any content. The caller puts it back.
func getBuffer(size int64) *zBuffer {
	var class uint
	if size > 1<<zBufferMinBits {
		class = uint(bits.Len64(uint64(size-1))) - zBufferMinBits
	}
	if buf, ok := zBuffers[class].Get().(*zBuffer); ok {
		buf.b = buf.b[:size]
		return buf
	}
	length := 1 << (zBufferMinBits + class)
	b := make([]byte, length+zAlign)
	skip := int(-reflect.ValueOf(b).Pointer() & (zAlign - 1))
	return &zBuffer{b: b[skip:][:size:length], class: class}
}

func (buf *zBuffer) put() { zBuffers[buf.class].Put(buf) }

// zReadMax bounds the bytes read at once, unless one pcluster that is not
// aligned needs a little more.
const zReadMax = disk.PclusterMaxSize

// readPclusters reads n bytes from byte address addr of the unified address
// space, 0 < n <= zReadMax. It reads whole units of zAlign where the device has
// them. src is in buf, which the caller puts back, also after an error.
func (im *Image) readPclusters(in *Inode, addr, n int64) (src []byte, buf *zBuffer, err error) {
	r, at, left, err := im.mapDevice(in.NID, 0, addr)
	if err != nil {
		return nil, getBuffer(0), err
	}
	if n > left {
		buf = getBuffer(n)
		return buf.b, buf, im.readData(in, buf.b, 0, addr)
	}
	start := at &^ (zAlign - 1)
	end := min(roundUp(at+n, zAlign), at+left)
	buf = getBuffer(end - start)
	if err := readFull(r, buf.b, start); err != nil {
		return nil, buf, readError("data", in.NID, at, err)
	}
	return buf.b[at-start:][:n], buf, nil
}
