package nodecache

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// maxOrder bounds a prefetch list, in chunks: 1 GiB.
	maxOrder = 4096
	// maxOrders bounds the lists of a store; the one not used for the longest goes.
	maxOrders = 256
	// orderMagic begins a prefetch list: then come the numbers of the chunks and the
	// CRC-32C of all before it, each 4 bytes, little endian.
	orderMagic = "erofs-order1"
)

// trace notes which chunks readers touch first, in their order.
type trace struct {
	touched []uint64 // a bit a chunk
	list    []int
}

func (t *trace) init(chunks int) { t.touched = make([]uint64, (chunks+63)/64) }

func (t *trace) touch(first, last int) {
	for c := first; c <= last && len(t.list) < maxOrder; c++ {
		if bit := uint64(1) << (c % 64); t.touched[c/64]&bit == 0 {
			t.touched[c/64] |= bit
			t.list = append(t.list, c)
		}
	}
}

// saveOrder keeps the chunks that readers of a blob touched, for the next time that it
// is pulled. It outlives the blob.
func (s *Store) saveOrder(d digest.Digest, list []int) error {
	text := []byte(orderMagic)
	for _, c := range list {
		text = binary.LittleEndian.AppendUint32(text, uint32(c)) //nolint:gosec // of a blob of less than 2^50 bytes
	}
	text = binary.LittleEndian.AppendUint32(text, crc32.Checksum(text, castagnoli))
	f, err := s.createTemp()
	if err != nil {
		return err
	}
	err = s.disk.writeAt(f, text, 0)
	if err == nil { // not synced: it has a sum of its own, and is worth no wait
		err = s.disk.rename(f.Name(), s.dir.order(d))
	}
	if err != nil {
		s.discard(f)
		return err
	}
	_ = f.Close()
	return s.trimOrders()
}

// loadOrder returns the chunks to bring first, of a blob of so many; nil without a list.
func (s *Store) loadOrder(d digest.Digest, chunks int) []int {
	f, err := os.OpenFile(s.dir.order(d), os.O_RDONLY|noFollow, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, int64(len(orderMagic)+4*maxOrder+4)))
	n := len(text) - len(orderMagic)
	if err != nil || n < 4 || n%4 != 0 || string(text[:len(orderMagic)]) != orderMagic {
		return nil
	}
	body := text[:len(text)-4]
	if binary.LittleEndian.Uint32(text[len(body):]) != crc32.Checksum(body, castagnoli) {
		return nil
	}
	var list []int
	for at := len(orderMagic); at < len(body); at += 4 {
		if c := int(binary.LittleEndian.Uint32(body[at:])); c < chunks {
			list = append(list, c)
		}
	}
	now := time.Now()
	_ = os.Chtimes(f.Name(), now, now)
	return list
}

// trimOrders removes the lists above maxOrders.
func (s *Store) trimOrders() error {
	entries, err := os.ReadDir(s.dir.prefetch)
	if err != nil || len(entries) <= maxOrders {
		return err
	}
	type list struct {
		name string
		used time.Time
	}
	lists := make([]list, 0, len(entries))
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			lists = append(lists, list{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(lists, func(a, b list) int { return cmp.Compare(a.used.UnixNano(), b.used.UnixNano()) })
	for _, l := range lists[:max(len(lists)-maxOrders, 0)] {
		if err := s.disk.remove(filepath.Join(s.dir.prefetch, l.name)); err != nil {
			return err
		}
	}
	return nil
}
