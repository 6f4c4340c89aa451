package nodecache

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// maxOrder bounds a prefetch list, in chunks: 1 GiB.
	maxOrder = 4096
	// maxOrders bounds the lists of a store, and with maxOrder what they take: 4 MiB. The
	// one not used for the longest goes.
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
// is pulled. It outlives the blob's eviction for its room, not its removal by name.
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

// eachOrder calls fn with each list, and with other files that are there.
func (s *Store) eachOrder(fn func(path string, d digest.Digest, info os.FileInfo), other func(path string)) error {
	return s.eachInfo(s.dir.prefetch, func(path string, info os.FileInfo) {
		if !hexName.MatchString(info.Name()) || !info.Mode().IsRegular() {
			other(path)
			return
		}
		fn(path, digest.NewDigestFromEncoded(digest.SHA256, info.Name()), info)
	})
}

// trimOrders removes the lists above maxOrders.
func (s *Store) trimOrders() error {
	type list struct {
		path string
		used time.Time
	}
	var lists []list
	err := s.eachOrder(func(path string, _ digest.Digest, info os.FileInfo) {
		lists = append(lists, list{path, info.ModTime()})
	}, func(string) {})
	if err != nil {
		return err
	}
	slices.SortFunc(lists, func(a, b list) int { return a.used.Compare(b.used) })
	for _, l := range lists[:max(len(lists)-maxOrders, 0)] {
		if err := s.disk.remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// dropOrders removes the lists of blobs of which nothing is in the store. It returns
// what they took on the disk.
func (s *Store) dropOrders() (freed int64, err error) {
	entries, _, err := s.entries()
	if err != nil {
		return 0, err
	}
	have := make(map[digest.Digest]bool, len(entries))
	for _, e := range entries {
		have[e.digest] = true
	}
	var errs []error
	err = s.eachOrder(func(path string, d digest.Digest, info os.FileInfo) {
		if have[d] {
			return
		}
		if err := s.disk.remove(path); err == nil {
			freed += onDisk(info)
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}, func(string) {})
	return freed, errors.Join(append(errs, err)...)
}
