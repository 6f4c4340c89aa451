package lz4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	pierrec "github.com/pierrec/lz4/v4"
)

// corpus returns inputs of every texture that matters to the decoder, named.
func corpus() map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 70_000)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	words := strings.Fields("inode superblock lcluster pcluster the of and nid 0x1f400 xattr\n dirent = ; return err != nil")
	var text bytes.Buffer
	for text.Len() < 300_000 {
		text.WriteString(words[rng.IntN(len(words))])
		text.WriteByte(' ')
	}
	c := map[string][]byte{
		"one":    []byte("x"),
		"short":  []byte("hello, hello, hello, hello, hello"),
		"zeros":  make([]byte, 300_000),
		"random": random,
		"text":   text.Bytes(),
	}
	// Every period from 1 to 40: overlapping matches of every offset.
	var periods bytes.Buffer
	for p := 1; p <= 40; p++ {
		for n := 0; n < 20+p*7; n++ {
			periods.WriteByte(random[n%p])
		}
		periods.Write(random[p*50 : p*50+rng.IntN(40)])
	}
	c["periods"] = periods.Bytes()
	// Random lengths of random textures.
	var mixed bytes.Buffer
	for mixed.Len() < 200_000 {
		n := rng.IntN(600)
		switch rng.IntN(4) {
		case 0:
			at := rng.IntN(len(random) - n)
			mixed.Write(random[at : at+n])
		case 1:
			at := rng.IntN(text.Len() - n)
			mixed.Write(text.Bytes()[at : at+n])
		case 2:
			mixed.Write(bytes.Repeat([]byte{byte(n)}, n))
		default:
			if back := 1 + rng.IntN(70); back < mixed.Len() {
				for range n {
					mixed.WriteByte(mixed.Bytes()[mixed.Len()-back])
				}
			}
		}
	}
	c["mixed"] = mixed.Bytes()
	return c
}

// compress returns data as one block, by the fast and by the hc compressor.
func compress(t testing.TB, data []byte) [][]byte {
	t.Helper()
	var out [][]byte
	for _, hc := range []bool{false, true} {
		dst := make([]byte, pierrec.CompressBlockBound(len(data)))
		var n int
		var err error
		if hc {
			n, err = (&pierrec.CompressorHC{Level: pierrec.Level9}).CompressBlock(data, dst)
		} else {
			n, err = (&pierrec.Compressor{}).CompressBlock(data, dst)
		}
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			out = append(out, dst[:n])
		}
	}
	return out
}

func TestDecodeEqualsPierrec(t *testing.T) {
	blocks := 0
	for name, data := range corpus() {
		for i, block := range compress(t, data) {
			blocks++
			want := make([]byte, len(data))
			n, err := pierrec.UncompressBlock(block, want)
			if err != nil || n != len(data) {
				t.Fatalf("%s/%d: pierrec: %d, %v", name, i, n, err)
			}
			got := make([]byte, len(data))
			n, err = Decode(got, block)
			if err != nil || n != len(data) || !bytes.Equal(got, want) {
				t.Errorf("%s/%d: Decode = %d, %v, equal %t", name, i, n, err, bytes.Equal(got, want))
			}
			// A longer destination: the block ends, and nothing is wrong.
			long := make([]byte, len(data)+100)
			if n, err = Decode(long, block); err != nil || n != len(data) || !bytes.Equal(long[:n], want) {
				t.Errorf("%s/%d: Decode into a longer destination = %d, %v", name, i, n, err)
			}
		}
	}
	if blocks < 10 {
		t.Fatalf("only %d blocks were compressible", blocks)
	}
}

// TestDecodeStops decodes every prefix of short data and many of long data,
// and checks that nothing behind the destination is touched and that what
// follows the block does not matter.
func TestDecodeStops(t *testing.T) {
	for name, data := range corpus() {
		for i, block := range compress(t, data) {
			padded := append(bytes.Clone(block), make([]byte, 64)...)
			step := 1 + len(data)/2000
			buf := make([]byte, len(data)+8)
			for limit := 0; limit <= len(data); limit += step {
				for j := range buf[limit:] {
					buf[limit+j] = 0xa5
				}
				n, err := Decode(buf[:limit], padded)
				if err != nil || n != limit {
					t.Fatalf("%s/%d: Decode of %d of %d = %d, %v", name, i, limit, len(data), n, err)
				}
				if !bytes.Equal(buf[:limit], data[:limit]) {
					t.Fatalf("%s/%d: %d of %d bytes differ from the data", name, i, limit, len(data))
				}
				if binary.LittleEndian.Uint64(buf[limit:]) != 0xa5a5a5a5a5a5a5a5 {
					t.Fatalf("%s/%d: wrote behind the %d bytes of the destination", name, i, limit)
				}
			}
		}
	}
}

// TestStateResumes decodes in steps of random length, into one destination and
// into a window that keeps only MaxDistance bytes of history.
func TestStateResumes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for name, data := range corpus() {
		for i, block := range compress(t, data) {
			for range 20 {
				most := 1 + rng.IntN([]int{3, 300, 1 << 20}[rng.IntN(3)])
				if len(data)/most > 20_000 {
					most = 300
				}
				var whole, slid State
				got := make([]byte, len(data))
				window := make([]byte, MaxDistance+most)
				at := 0
				for done := 0; done < len(data); {
					limit := min(done+1+rng.IntN(most), len(data))
					n, err := whole.Decode(got[:limit], done, block)
					if err != nil || n != limit || !bytes.Equal(got[done:n], data[done:n]) {
						t.Fatalf("%s/%d: %d to %d: %d, %v, equal %t", name, i, done, limit, n, err, bytes.Equal(got[:limit], data[:limit]))
					}
					if at+limit-done > len(window) {
						at = copy(window, window[at-MaxDistance:at])
					}
					n, err = slid.Decode(window[:at+limit-done], at, block)
					if err != nil || n != at+limit-done || !bytes.Equal(window[at:n], data[done:limit]) {
						t.Fatalf("%s/%d: window, %d to %d: %d, %v", name, i, done, limit, n, err)
					}
					at, done = n, limit
				}
			}
		}
	}
}

func TestDecodeHostile(t *testing.T) {
	ff := func(n int) string { return strings.Repeat("\xff", n) }
	tests := []struct {
		name string
		src  string
		dst  int
		n    int
		err  error
	}{
		{"nothing wanted", "", 0, 0, nil},
		{"empty source", "", 1, 0, ErrCorrupt},
		{"empty block", "\x00", 1, 0, nil},
		{"literals cut off", "\x40ab", 4, 0, ErrCorrupt},
		{"literals cut off behind the cap", "\x40ab", 2, 2, nil},
		{"literal length cut off", "\xf0", 64, 0, ErrCorrupt},
		{"literal length cut off after 255s", "\xf0" + ff(100), 64, 0, ErrCorrupt},
		{"literal length beyond the source", "\xf0" + ff(100) + "\x00abc", 1 << 20, 0, ErrCorrupt},
		{"offset 0", "\x10a\x00\x00" + ff(64), 100, 1, ErrCorrupt},
		{"offset before the destination", "\x10a\x02\x00" + ff(64), 100, 1, ErrCorrupt},
		{"offset before the destination near the cap", "\x10a\x02\x00", 5, 1, ErrCorrupt},
		{"match as first sequence", "\x00\x01\x00" + ff(64), 100, 0, ErrCorrupt},
		{"offset cut off", "\x10a\x01", 100, 1, ErrCorrupt},
		{"last sequence with a match", "\x11a", 100, 1, ErrCorrupt},
		{"ends with a match", "\x10a\x01\x00", 100, 5, ErrCorrupt},
		{"match to the cap exactly", "\x10a\x01\x00", 5, 5, nil},
		{"match length cut off", "\x1fa\x01\x00" + ff(50), 1 << 20, 1, ErrCorrupt},
		{"match length cut off behind the cap", "\x1fa\x01\x00" + ff(2), 1 + 19 + 2*255, 1 + 19 + 2*255, nil},
		{"match length cut off at the cap", "\x1fa\x01\x00" + ff(2), 1 + 19 + 2*255 + 1, 1, ErrCorrupt},
		{"match length beyond the cap", "\x1fa\x01\x00" + ff(50) + "\x00", 100, 100, nil},
		{"zeros", strings.Repeat("\x00", 4096), 4096, 0, ErrCorrupt},
	}
	for _, tt := range tests {
		dst := make([]byte, tt.dst)
		n, err := Decode(dst, []byte(tt.src))
		if n != tt.n || !errors.Is(err, tt.err) {
			t.Errorf("%s: Decode = %d, %v, want %d, %v", tt.name, n, err, tt.n, tt.err)
		}
	}
}

// TestDecodeTruncated cuts and damages blocks at every place: no panic, no
// byte behind the destination, and what is said to be good before an error of
// a cut block is good.
func TestDecodeTruncated(t *testing.T) {
	for _, name := range []string{"short", "periods"} {
		data := corpus()[name]
		for _, block := range compress(t, data) {
			backing := make([]byte, len(data)+16)
			for cut := range block {
				n, err := Decode(backing[:len(data)], block[:cut:cut])
				if err == nil && n == len(data) {
					t.Fatalf("%s: whole data from %d of %d bytes", name, cut, len(block))
				}
				if !bytes.Equal(backing[:n], data[:n]) {
					t.Fatalf("%s: cut at %d: the %d good bytes differ", name, cut, n)
				}
				bad := bytes.Clone(block)
				bad[cut] ^= byte(1 + cut%255)
				if n, err = Decode(backing[:len(data)], bad); n > len(data) || (err != nil && !errors.Is(err, ErrCorrupt)) {
					t.Fatalf("%s: damaged at %d: %d, %v", name, cut, n, err)
				}
				if !bytes.Equal(backing[len(data):], make([]byte, 16)) {
					t.Fatalf("%s: damaged at %d: wrote behind the destination", name, cut)
				}
			}
		}
	}
}

// reference decodes a block byte by byte, as the format's document says it,
// until limit bytes are there. It is the oracle of the fuzz target, which
// pierrec can't be: it has no limit.
func reference(src []byte, limit int) (out []byte, ok bool) {
	i := 0
	next := func() int {
		if i >= len(src) {
			return -1
		}
		i++
		return int(src[i-1])
	}
	length := func(n int) int {
		if n < 15 {
			return n
		}
		for {
			b := next()
			if b < 0 {
				return -1
			}
			if n += b; b != 255 {
				return n
			}
		}
	}
	for len(out) < limit {
		token := next()
		if token < 0 {
			return out, false
		}
		lit := length(token >> 4)
		if lit < 0 || (lit > len(src)-i && len(src)-i < limit-len(out)) {
			return out, false
		}
		for ; lit > 0 && len(out) < limit; lit-- {
			out = append(out, byte(next()))
		}
		if len(out) == limit {
			break
		}
		if i == len(src) {
			return out, token&15 == 0
		}
		lo, hi := next(), next()
		if hi < 0 {
			return out, false
		}
		offset := lo | hi<<8
		if offset == 0 || offset > len(out) {
			return out, false
		}
		n := token&15 + 4
		for more := n == 19; more && n < limit-len(out); {
			b := next()
			if b < 0 {
				return out, false
			}
			n += b
			more = b == 255
		}
		for ; n > 0 && len(out) < limit; n-- {
			out = append(out, out[len(out)-offset])
		}
	}
	return out, true
}

func FuzzDecode(f *testing.F) {
	for _, data := range corpus() {
		for _, block := range compress(f, data[:min(len(data), 4000)]) {
			f.Add(block, uint16(len(data)/2), uint16(len(data)/3))
		}
	}
	f.Add([]byte("\x1fa\x01\x00\xff\xff\x00"), uint16(100), uint16(7))
	f.Fuzz(func(t *testing.T, src []byte, limit, part uint16) {
		want, ok := reference(src, int(limit))
		backing := bytes.Repeat([]byte{0x5a}, int(limit)+8)
		n, err := Decode(backing[:limit], src)
		if (err == nil) != ok || n != len(want) || !bytes.Equal(backing[:n], want) {
			t.Fatalf("Decode = %d, %v; the reference has %d, %t", n, err, len(want), ok)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error %v does not wrap ErrCorrupt", err)
		}
		if string(backing[limit:]) != strings.Repeat("\x5a", 8) {
			t.Fatal("wrote behind the destination")
		}
		// The same in two steps.
		var s State
		first := min(part, limit)
		if n, err = s.Decode(backing[:first], 0, src); err != nil || n < int(first) {
			return
		}
		// An error may come later in its sequence, with more good bytes before it.
		n, err = s.Decode(backing[:limit], n, src)
		if (err == nil) != ok || n < len(want) || (ok && n > len(want)) || !bytes.Equal(backing[:len(want)], want) {
			t.Fatalf("in two steps, %d and %d: %d, %v; the reference has %d, %t", first, limit, n, err, len(want), ok)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"text", "mixed", "random", "zeros"} {
		data := corpus()[name]
		blocks := compress(b, data)
		if len(blocks) == 0 {
			continue
		}
		benchmarkBoth(b, name, data, blocks[len(blocks)-1])
	}
}

func benchmarkBoth(b *testing.B, name string, data, block []byte) {
	b.Helper()
	dst := make([]byte, len(data))
	b.Run(fmt.Sprintf("%s-%.1fx/this", name, float64(len(data))/float64(len(block))), func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if n, err := Decode(dst, block); err != nil || n != len(dst) {
				b.Fatal(n, err)
			}
		}
	})
	b.Run(fmt.Sprintf("%s-%.1fx/pierrec", name, float64(len(data))/float64(len(block))), func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if n, err := pierrec.UncompressBlock(block, dst); err != nil || n != len(dst) {
				b.Fatal(n, err)
			}
		}
	})
}
