package build

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory of Zstandard: what zstd itself takes without being
// told to take more.
const maxWindow = 128 << 20

// Decompress reads a gzip or Zstandard stream by its first bytes, or anything else as
// it is. Errors of the format wrap [ErrLayer], those of r come out as they are. Close
// does not close r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	src := &readErrors{r: r}
	head := make([]byte, 4)
	n, err := io.ReadFull(src, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	head = head[:n]
	whole := io.MultiReader(bytes.NewReader(head), src)
	d := &decompressed{src: src}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(whole)
		if err != nil {
			return nil, d.failed(err)
		}
		d.r, d.close = z, func() { _ = z.Close() }
	case isZstd(head):
		z, err := zstd.NewReader(whole, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, d.failed(err)
		}
		d.r, d.close = z, z.Close
	default:
		return io.NopCloser(whole), nil
	}
	return d, nil
}

// isZstd knows frames, and the skippable ones that some writers begin with
// (RFC 8878, section 3.1).
func isZstd(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18})
}

type decompressed struct {
	r     io.Reader
	src   *readErrors
	close func()
}

func (d *decompressed) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = d.failed(err)
	}
	return n, err
}

func (d *decompressed) failed(err error) error {
	if d.src.err != nil {
		return d.src.err
	}
	return fmt.Errorf("%w: damaged compressed data: %w", ErrLayer, err)
}

func (d *decompressed) Close() error {
	d.close()
	return nil
}

// readErrors remembers an error of r that is not its end.
type readErrors struct {
	r   io.Reader
	err error
}

func (r *readErrors) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}
