package erofs

import (
	"reflect"
	"sync"
)

// zAlign is the alignment in memory of buffers that the device reads to, in
// bytes: that of O_DIRECT on any device.
const zAlign = 4096

// zBuffer is a buffer for compressed data: cap(b) is a class of
// zBufferClasses, its address a multiple of zAlign.
type zBuffer struct {
	b     []byte
	class int
}

// zBufferClasses are the lengths of buffers: for one cluster or a few, for a
// large read over small clusters, and for anything, zReadMax.
var zBufferClasses = [...]int{64 << 10, 256 << 10, zReadMax}

// zBuffers has the free buffers of each class. At any time there are no more
// buffers than there have been concurrent calls since the last but one
// collection, and zKept.
var zBuffers [len(zBufferClasses)]sync.Pool

// getBuffer returns a buffer of at least size bytes, 0 <= size <= zReadMax, of
// any content. The caller puts it back.
func getBuffer(size int64) *zBuffer {
	class := 0
	for int64(zBufferClasses[class]) < size {
		class++
	}
	if buf, ok := zBuffers[class].Get().(*zBuffer); ok {
		return buf
	}
	b := make([]byte, zBufferClasses[class]+zAlign)
	skip := int(-reflect.ValueOf(b).Pointer() & (zAlign - 1))
	return &zBuffer{b: b[skip:][:zBufferClasses[class]:zBufferClasses[class]], class: class}
}

func (buf *zBuffer) put() { zBuffers[buf.class].Put(buf) }
