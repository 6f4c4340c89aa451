package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"
)

// Forge changes an image so that it claims of its one file with the content of, which
// its own fingerprint must not be anywhere compressed, that it holds as. It mends the
// superblock's checksum, as a forger would.
func Forge(t testing.TB, image string, of, as []byte) {
	t.Helper()
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	from, to := sha256.Sum256(of), sha256.Sum256(as)
	if n := bytes.Count(data, from[:]); n != 1 {
		t.Fatalf("%s has the fingerprint %d times, want 1", image, n)
	}
	copy(data[bytes.Index(data, from[:]):], to[:])
	const super, compat, sum, blockBits, hasSum = 1024, 8, 4, 12, 1
	if binary.LittleEndian.Uint32(data[super+compat:])&hasSum != 0 {
		clear(data[super+sum : super+sum+4])
		end := 1 << data[super+blockBits] // of its block
		crc := ^crc32.Checksum(data[super:end], crc32.MakeTable(crc32.Castagnoli))
		binary.LittleEndian.PutUint32(data[super+sum:], crc)
	}
	if err := os.WriteFile(image, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
