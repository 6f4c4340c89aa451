package fingerprint

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrDamaged says that a stored index is not one, is of another version or image,
// or does not match its own checksum. Build it anew.
var ErrDamaged = errors.New("fingerprint index is damaged or of another image")

// The file: a header, then nid (8 bytes) and SHA-256 (32 bytes) of each file in
// ascending order of nids, then the SHA-256 of all before. Little endian.
//
//	magic      [8]byte  "EROFSFPI"
//	version    uint32   1
//	reserved   uint32   0
//	identity   [32]byte SHA-256 of the image's identity (see Write)
//	count      uint64
const (
	magic      = "EROFSFPI"
	version    = 1
	headerSize = 8 + 4 + 4 + 32 + 8
	entrySize  = 8 + 32
)

func header(imageID string, count int) []byte {
	h := make([]byte, 0, headerSize)
	h = append(h, magic...)
	h = binary.LittleEndian.AppendUint32(h, version)
	h = binary.LittleEndian.AppendUint32(h, 0)
	id := sha256.Sum256([]byte(imageID))
	h = append(h, id[:]...)
	return binary.LittleEndian.AppendUint64(h, uint64(count))
}

// Write stores the index. imageID is what names the image's bytes, for example
// its blob's digest; Read takes the index for that image alone.
func (ix *Index) Write(w io.Writer, imageID string) error {
	sum := sha256.New()
	b := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<16)
	if _, err := b.Write(header(imageID, len(ix.nids))); err != nil {
		return err
	}
	var entry [entrySize]byte
	for i, nid := range ix.nids {
		binary.LittleEndian.PutUint64(entry[:], nid)
		copy(entry[8:], ix.sums[i][:])
		if _, err := b.Write(entry[:]); err != nil {
			return err
		}
	}
	if err := b.Flush(); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// Read loads an index that Write stored for the image of this identity. size is
// the length of r; it bounds what is allocated.
//
// Errors: ErrDamaged, or those of r.
func Read(r io.Reader, size int64, imageID string) (*Index, error) {
	if size < headerSize+sha256.Size || (size-headerSize-sha256.Size)%entrySize != 0 {
		return nil, fmt.Errorf("%w: %d bytes long", ErrDamaged, size)
	}
	count := int((size - headerSize - sha256.Size) / entrySize)
	sum := sha256.New()
	b := bufio.NewReaderSize(r, 1<<16)
	in := io.TeeReader(b, sum)

	var head [headerSize]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, truncated(err)
	}
	if !bytes.Equal(head[:], header(imageID, count)) {
		return nil, fmt.Errorf("%w: header", ErrDamaged)
	}
	ix := &Index{nids: make([]uint64, count), sums: make([]Sum, count)}
	var entry [entrySize]byte
	for i := range count {
		if _, err := io.ReadFull(in, entry[:]); err != nil {
			return nil, truncated(err)
		}
		ix.nids[i] = binary.LittleEndian.Uint64(entry[:])
		copy(ix.sums[i][:], entry[8:])
		if i > 0 && ix.nids[i-1] >= ix.nids[i] {
			return nil, fmt.Errorf("%w: nids out of order", ErrDamaged)
		}
	}
	want := sum.Sum(nil)
	var got [sha256.Size]byte
	if _, err := io.ReadFull(b, got[:]); err != nil {
		return nil, truncated(err)
	}
	if !bytes.Equal(got[:], want) {
		return nil, fmt.Errorf("%w: checksum", ErrDamaged)
	}
	return ix, nil
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: cut off", ErrDamaged)
	}
	return err
}
