package erofs

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/erofs/internal/lz4"
	"github.com/erofs-csi/erofs-csi/erofs/internal/microlzma"
)

// zDecoder decodes a pcluster, in one go or piece by piece. It has one user at
// a time. The zero zDecoder is idle.
type zDecoder struct {
	kind zKind
	src  []byte // the compressed data without padding; nil: idle

	lz4     lz4.State
	lzma    *microlzma.Decoder
	deflate *deflateReader
	zstd    *zstdReader
}

// zResumable reports whether an extent can be decoded piece by piece. It is not
// for Zstandard, whose frames are decoded several times as fast at once, unless
// a frame may have more data than the extent.
func zResumable(x *zExtent) bool { return x.kind != disk.AlgZstd || x.partial }

// errShort says that a pcluster decodes to less than its extent.
var errShort = errors.New("they end early")

// start begins a pcluster of kind whose data are src, which must stay as it is
// until stop. partial says that only the first part of what it decodes to is
// wanted. Errors are of the codec.
func (d *zDecoder) start(kind zKind, src []byte, partial bool) (err error) {
	*d = zDecoder{kind: kind, src: src}
	switch kind {
	case disk.AlgLZMA:
		d.lzma = lzmaDecoders.Get().(*microlzma.Decoder)
		err = d.lzma.Reset(src)
	case disk.AlgDeflate:
		d.deflate = deflateReaders.Get().(*deflateReader)
		err = d.deflate.reset(src)
	case disk.AlgZstd:
		if d.src, err = zstdFrame(src); err == nil && partial {
			d.zstd, err = newZstdReader(d.src)
		}
	default: // LZ4 has nothing to prepare
	}
	return err
}

// started reports whether decode can go on.
func (d *zDecoder) started() bool { return d.src != nil }

// decode fills dst[at:]; dst[:at] is all output so far. n is the end of the
// good bytes in dst, less than len(dst) only with an error of the codec, or with
// nil where the pcluster has no more data.
func (d *zDecoder) decode(dst []byte, at int) (n int, err error) {
	switch {
	case d.kind == disk.AlgLZ4:
		return d.lz4.Decode(dst, at, d.src)
	case d.kind == disk.AlgLZMA:
		return d.lzma.Decode(dst, at)
	case d.kind == disk.AlgDeflate:
		return readOn(d.deflate.r, dst, at)
	case d.zstd != nil:
		return readOn(d.zstd.r, dst, at)
	default:
		out, err := zstdBlocks().DecodeAll(d.src, dst[:0:len(dst)])
		if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
			// mkfs.erofs --max-extent-bytes leaves frames longer than their extents.
			if d.zstd, err = newZstdReader(d.src); err == nil {
				return readOn(d.zstd.r, dst, 0)
			}
		}
		return len(out), err
	}
}

// stop ends the pcluster; started is false then.
func (d *zDecoder) stop() {
	if d.lzma != nil {
		_ = d.lzma.Reset(nil)
		lzmaDecoders.Put(d.lzma)
	}
	if d.deflate != nil {
		_ = d.deflate.reset(nil)
		deflateReaders.Put(d.deflate)
	}
	if d.zstd != nil {
		d.zstd.put()
	}
	*d = zDecoder{}
}

// readOn fills dst[at:] from r.
func readOn(r io.Reader, dst []byte, at int) (int, error) {
	n, err := io.ReadFull(r, dst[at:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return at + n, err
}

var lzmaDecoders = sync.Pool{New: func() any { return new(microlzma.Decoder) }}

// deflateReader is a decoder for raw DEFLATE and what it reads from.
type deflateReader struct {
	src bytes.Reader
	r   io.ReadCloser // a flate.Resetter
}

var deflateReaders = sync.Pool{New: func() any {
	d := new(deflateReader)
	d.r = flate.NewReader(&d.src)
	return d
}}

func (d *deflateReader) reset(src []byte) error {
	d.src.Reset(src)
	return d.r.(flate.Resetter).Reset(&d.src, nil)
}

// zstdBlocks is the decoder for whole frames. As many run at a time as there are
// CPUs, each with some 200 KiB.
var zstdBlocks = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(disk.PclusterMaxDecoded))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

// zstdReader is a decoder for the first part of a frame.
type zstdReader struct {
	src bytes.Reader
	r   *zstd.Decoder
}

var zstdReaders sync.Pool

func newZstdReader(frame []byte) (*zstdReader, error) {
	d, ok := zstdReaders.Get().(*zstdReader)
	if !ok {
		d = new(zstdReader)
		var err error
		d.r, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeBuffersBelow(0),
			zstd.WithDecoderMaxMemory(disk.PclusterMaxDecoded))
		if err != nil {
			return nil, err
		}
	}
	d.src.Reset(frame)
	return d, d.r.Reset(&d.src)
}

func (d *zstdReader) put() {
	_ = d.r.Reset(nil)
	d.src.Reset(nil)
	zstdReaders.Put(d)
}

var errZstdFrame = errors.New("not one whole frame")

// zstdFrame cuts src behind its first frame, so that a decoder neither skips
// frames nor goes on to another: Linux does neither.
//
// Source: RFC 8878, sections 3.1.1.1 and 3.1.1.2.
func zstdFrame(src []byte) ([]byte, error) {
	const magic, header = 0xfd2fb528, 5
	if len(src) < header || le.Uint32(src) != magic {
		return nil, errZstdFrame
	}
	descriptor := src[4]
	n := header + [...]int{0, 1, 2, 4}[descriptor&3] + [...]int{0, 2, 4, 8}[descriptor>>6]
	if single := descriptor&0x20 != 0; !single {
		n++ // a window descriptor
	} else if descriptor>>6 == 0 {
		n++ // a content size of one byte
	}
	for last := false; !last; {
		if len(src)-n < 3 {
			return nil, errZstdFrame
		}
		block := int(src[n]) | int(src[n+1])<<8 | int(src[n+2])<<16
		last = block&1 != 0
		size := block >> 3
		if block>>1&3 == 1 {
			size = 1 // one byte that repeats
		}
		if n += 3; size > len(src)-n {
			return nil, errZstdFrame
		}
		n += size
	}
	if descriptor&4 != 0 {
		n += 4 // a checksum
	}
	if n > len(src) {
		return nil, errZstdFrame
	}
	return src[:n:n], nil
}
