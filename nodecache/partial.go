package nodecache

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// chunkSize is the unit in which a blob comes, in bytes. A read of a lazy blob waits
// for whole chunks: 21 ms at 100 Mbit/s.
const chunkSize = 256 << 10

// The file beside a partial blob that says which of its chunks are there, all numbers
// little endian:
//
//	0   12  stateMagic
//	12   4  chunkSize
//	16   8  size of the blob
//	24  32  its SHA-256
//	56   4  0
//	60   4  CRC-32C of the above
//	64   8  for each chunk: CRC-32C of its bytes; CRC-32C of its number (8 bytes) and
//	        that. Both are 0 for a chunk that is not there.
//
// A record is written after its chunk, and neither is synced: which of them a power
// cut leaves is any. That a chunk is there is believed when its bytes have the record's
// sum, so that a pull never waits for the disk, and what a disk loses is fetched again
// instead of spoiling the digest of the whole.
const (
	stateMagic  = "erofs-chunk1"
	stateHeader = 64
	stateRecord = 8
	stateSuffix = ".chunks"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// partial is a blob that is not complete: a sparse file of the blob's length and the
// state of its chunks, below partial/.
type partial struct {
	disk  disk
	blob  digest.Digest
	size  int64
	data  *os.File
	state *os.File
	// sums are the records of chunks that were there when it was opened: CRC-32C, with
	// the bit hasSum.
	sums []uint64
}

const hasSum = 1 << 32

// chunksOf is how many chunks a blob of size bytes has.
func chunksOf(size int64) int { return int((size + chunkSize - 1) / chunkSize) }

// chunkLen is the length of chunk c in bytes; that of the last one may be less than
// chunkSize.
func (p *partial) chunkLen(c int) int { return int(min(chunkSize, p.size-int64(c)*chunkSize)) }

// openPartial opens what there is of a blob, or takes room for it. The room is the
// blob's until unclaim of its path.
func (s *Store) openPartial(what string, d digest.Digest, size int64) (p *partial, err error) {
	p = &partial{disk: s.disk, blob: d, size: size}
	if p.data, p.state, p.sums, err = s.findPartial(d, size); err == nil {
		// It has its room, but on file systems that give none in advance.
		if err := s.growRoom(what, s.dir.partial(d), size); err != nil {
			p.close()
			return nil, err
		}
		return p, nil
	}
	if err := s.removePartial(d); err != nil {
		return nil, s.diskError("remove what is damaged of "+what, err)
	}
	temp, err := s.makeRoom(what, size)
	if err != nil {
		return nil, err
	}
	if err := p.create(s.dir, temp); err != nil {
		s.discard(temp)
		p.close()
		_ = s.removePartial(d)
		return nil, s.diskError("room for "+what, err)
	}
	s.claim(s.dir.partial(d), size)
	s.unclaim(temp.Name())
	return p, nil
}

// create gives a temporary file its name, after that of its state.
func (p *partial) create(dir layout, temp *os.File) (err error) {
	p.sums = make([]uint64, chunksOf(p.size))
	path := dir.partial(p.blob)
	if p.state, err = p.disk.create(path + stateSuffix); err != nil {
		return err
	}
	if err := p.disk.writeAt(p.state, stateOf(p.blob, p.size), 0); err != nil {
		return err
	}
	if err := temp.Truncate(p.size); err != nil {
		return err
	}
	if err := p.disk.rename(temp.Name(), path); err != nil {
		return err
	}
	// By its new name, which errors tell.
	if p.data, err = os.OpenFile(path, os.O_RDWR|noFollow, 0); err != nil {
		return err
	}
	return temp.Close()
}

// stateOf is the header of a state.
func stateOf(d digest.Digest, size int64) []byte {
	h := make([]byte, stateHeader)
	copy(h, stateMagic)
	binary.LittleEndian.PutUint32(h[12:], chunkSize)
	binary.LittleEndian.PutUint64(h[16:], uint64(size)) //nolint:gosec // above 0
	sum, _ := hex.DecodeString(d.Encoded())             // digests were validated
	copy(h[24:56], sum)
	binary.LittleEndian.PutUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
	return h
}

// findPartial opens what there is of a blob and reads its state. The error wraps
// [os.ErrNotExist] if there is nothing, or tells that it is not what it should be.
func (s *Store) findPartial(d digest.Digest, size int64) (data, state *os.File, sums []uint64, err error) {
	path := s.dir.partial(d)
	defer func() {
		if err != nil {
			closeAll(data, state)
		}
	}()
	if data, err = os.OpenFile(path, os.O_RDWR|noFollow, 0); err != nil {
		return nil, nil, nil, err
	}
	if state, err = os.OpenFile(path+stateSuffix, os.O_RDWR|noFollow, 0); err != nil {
		return nil, nil, nil, err
	}
	if st, err := data.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() != size {
		return nil, nil, nil, fmt.Errorf("%s is not a file of %d bytes: %w", path, size, errors.Join(err, errDamaged))
	}
	// Bounded: one that is longer than a state of this size is not read on.
	text := make([]byte, stateHeader+stateRecord*chunksOf(size))
	n, err := io.ReadFull(state, text)
	if n < stateHeader || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil, nil, fmt.Errorf("%s: %w", state.Name(), errors.Join(err, errDamaged))
	}
	if string(text[:stateHeader]) != string(stateOf(d, size)) {
		return nil, nil, nil, fmt.Errorf("%s: %w", state.Name(), errDamaged)
	}
	sums = make([]uint64, chunksOf(size))
	for c := range sums { // what is beyond the end of the state is 0
		r := text[stateHeader+stateRecord*c:][:stateRecord]
		sum := binary.LittleEndian.Uint32(r)
		if check := binary.LittleEndian.Uint32(r[4:]); check != 0 && check == recordCheck(c, sum) {
			sums[c] = uint64(sum) | hasSum
		}
	}
	return data, state, sums, nil
}

var errDamaged = errors.New("damaged")

func recordCheck(c int, sum uint32) uint32 {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[:], uint64(c)) //nolint:gosec // not below 0
	binary.LittleEndian.PutUint32(b[8:], sum)
	return crc32.Checksum(b[:], castagnoli)
}

// write keeps the bytes of chunk c.
func (p *partial) write(c int, bytes []byte) error {
	if err := p.disk.writeAt(p.data, bytes, int64(c)*chunkSize); err != nil {
		return err
	}
	sum := crc32.Checksum(bytes, castagnoli)
	var r [stateRecord]byte
	binary.LittleEndian.PutUint32(r[:], sum)
	binary.LittleEndian.PutUint32(r[4:], recordCheck(c, sum))
	return p.disk.writeAt(p.state, r[:], stateHeader+stateRecord*int64(c))
}

// forget forgets all chunks. It need not be durable: those that come back have the
// wrong digest together, and are found out again.
func (p *partial) forget() {
	_ = p.state.Truncate(stateHeader)
	clear(p.sums)
}

// read reads chunk c into buf, of chunkSize bytes at least.
func (p *partial) read(c int, buf []byte) ([]byte, error) {
	buf = buf[:p.chunkLen(c)]
	_, err := p.data.ReadAt(buf, int64(c)*chunkSize)
	return buf, err
}

// matches tells whether these are the bytes of chunk c that its record was made of.
func (p *partial) matches(c int, bytes []byte) bool {
	return p.sums[c] == uint64(crc32.Checksum(bytes, castagnoli))|hasSum
}

// flush sends the bytes from start to end to the disk, and drops those from drop to
// start, which were sent before. It is no fsync: errors come out there.
func (p *partial) flush(drop, start, end int64) {
	fd := int(p.data.Fd())
	_ = unix.SyncFileRange(fd, start, end-start, unix.SYNC_FILE_RANGE_WRITE)
	if drop < start {
		_ = unix.SyncFileRange(fd, drop, start-drop, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		_ = unix.Fadvise(fd, drop, (start-drop+4095)&^4095, unix.FADV_DONTNEED)
	}
}

// publish makes it the blob that its digest promises, which the caller has checked.
// The order is that of [Store.publish]; the state goes last, and what a crash leaves
// of it is removed at the next start.
func (p *partial) publish(dir layout) error {
	if err := p.disk.sync(p.data); err != nil {
		return err
	}
	_ = unix.Fadvise(int(p.data.Fd()), 0, 0, unix.FADV_DONTNEED)
	if err := p.disk.rename(dir.partial(p.blob), dir.blob(p.blob)); err != nil {
		return err
	}
	if err := p.disk.syncDir(dir.blobs); err != nil {
		return err
	}
	_ = p.disk.remove(dir.partial(p.blob) + stateSuffix)
	return nil
}

func (p *partial) close() { closeAll(p.data, p.state) }

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// partialPresent tells whether the store has a part of the blob d of size bytes.
func (s *Store) partialPresent(d digest.Digest, size int64) bool {
	data, state, _, err := s.findPartial(d, size)
	closeAll(data, state)
	return err == nil
}

// removePartial removes what there is of a blob. It is no error if there is nothing.
func (s *Store) removePartial(d digest.Digest) error {
	path := s.dir.partial(d)
	var errs []error
	for _, p := range []string{path, path + stateSuffix} {
		if _, err := os.Lstat(p); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := s.disk.remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// repairPartials removes what is no part of a blob, or of one that is complete.
func (s *Store) repairPartials() error {
	return s.eachName(s.dir.partials, func(name string) error {
		encoded, _ := strings.CutSuffix(name, stateSuffix)
		if !hexName.MatchString(encoded) {
			return nil // none of ours
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, encoded)
		_, err := os.Lstat(s.dir.blob(d))
		st, err2 := os.Lstat(s.dir.partial(d))
		if err != nil && err2 == nil && st.Mode().IsRegular() && s.partialPresent(d, st.Size()) {
			return nil
		}
		return s.removePartial(d)
	})
}
