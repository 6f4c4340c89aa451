package microlzma

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// guard is put behind destinations.
var guard = []byte("\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5")

// guarded returns a destination of n bytes and what tests that nothing behind
// it was overwritten.
func guarded(t testing.TB, n int) (dst []byte, check func()) {
	t.Helper()
	backing := append(bytes.Repeat([]byte{0xcc}, n), guard...)
	return backing[:n], func() {
		t.Helper()
		if !bytes.Equal(backing[n:], guard) {
			t.Fatalf("wrote behind the %d bytes of the destination", n)
		}
	}
}

// begin returns a Decoder at the start of src.
func begin(t testing.TB, src []byte) *Decoder {
	t.Helper()
	d := new(Decoder)
	if err := d.Reset(src); err != nil {
		t.Fatalf("Reset: %v", err)
	}
	return d
}

func TestDecodeEqualsReference(t *testing.T) {
	for _, v := range vectors {
		src, data := whole(t, v.name)
		limit := min(len(data), 50_000)
		out, ok, finished := decodeReference(src, limit)
		if !ok || !bytes.Equal(out, data[:limit]) || finished != (limit == len(data)) {
			t.Errorf("%s: the reference has %d of %d bytes, %t, finished %t", v.name, len(out), limit, ok, finished)
		}
	}
}

// TestDecodeStops decodes many prefixes of the data: nothing behind the
// destination is touched, and what follows in the source does not matter.
func TestDecodeStops(t *testing.T) {
	for _, v := range vectors {
		src, data := whole(t, v.name)
		src = append(src, make([]byte, 64)...)
		d := new(Decoder)
		for limit := 0; limit <= len(data); limit += 1 + len(data)/500 {
			dst, check := guarded(t, limit)
			if err := d.Reset(src); err != nil {
				t.Fatal(err)
			}
			n, err := d.Decode(dst, 0)
			if err != nil || n != limit || !bytes.Equal(dst, data[:limit]) || d.Finished() {
				t.Fatalf("%s: Decode of %d = %d, %v, equal %t, finished %t",
					v.name, limit, n, err, bytes.Equal(dst, data[:limit]), d.Finished())
			}
			check()
		}
	}
}

// TestDecodeResumes decodes in steps, each into a destination of its own or
// all into one that has room for more.
func TestDecodeResumes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	steps := map[string]func() int{
		"1":      func() int { return 1 },
		"2":      func() int { return 2 },
		"3":      func() int { return 3 },
		"7":      func() int { return 7 },
		"273":    func() int { return maxMatch },
		"4096":   func() int { return 4096 },
		"random": func() int { return rng.IntN([]int{3, 40, 3000}[rng.IntN(3)]) },
	}
	for _, v := range vectors {
		src, data := whole(t, v.name)
		for name, step := range steps {
			one, other := begin(t, src), begin(t, src)
			dst, moved := make([]byte, len(data)), []byte(nil)
			for at := 0; at < len(data); {
				end := min(at+step(), len(data))
				n, err := one.Decode(dst[:end], at)
				if err != nil || n != end || !bytes.Equal(dst[at:end], data[at:end]) {
					t.Fatalf("%s in steps of %s: %d to %d: %d, %v, equal %t",
						v.name, name, at, end, n, err, bytes.Equal(dst[at:end], data[at:end]))
				}
				if len(data) <= 5000 {
					moved = append(make([]byte, 0, end), moved...)[:end]
					if n, err = other.Decode(moved, at); err != nil || n != end || !bytes.Equal(moved, data[:end]) {
						t.Fatalf("%s in steps of %s, moved: %d to %d: %d, %v", v.name, name, at, end, n, err)
					}
				}
				at = end
			}
			if !one.Finished() {
				t.Errorf("%s in steps of %s isn't finished", v.name, name)
			}
		}
	}
}

// TestDecodeTruncated cuts streams at every place: there is an error, or the
// data was whole without the rest, but then it isn't finished. What is said to
// be good is good, and as much as the reference has.
func TestDecodeTruncated(t *testing.T) {
	for _, name := range []string{"mixed-lc0-lp4-pb4", "mixed-lc3-lp1-pb2", "program-1024", "periods", "random", "zeros-64", "five", "one"} {
		src, data := whole(t, name)
		d := new(Decoder)
		for cut := range src {
			err := d.Reset(src[:cut:cut])
			if (err != nil) != (cut < head) || (err != nil && !errors.Is(err, ErrCorrupt)) {
				t.Fatalf("%s cut at %d: Reset: %v", name, cut, err)
			}
			dst, check := guarded(t, len(data))
			n, err := d.Decode(dst, 0)
			check()
			if d.Finished() || (err == nil) != (n == len(data)) || (err != nil && !errors.Is(err, ErrCorrupt)) {
				t.Fatalf("%s cut at %d: %d of %d, %v, finished %t", name, cut, n, len(data), err, d.Finished())
			}
			if !bytes.Equal(dst[:n], data[:n]) {
				t.Fatalf("%s cut at %d: the %d good bytes differ", name, cut, n)
			}
			if cut%(1+len(data)/100) != 0 {
				continue
			}
			if want, _, _ := decodeReference(src[:cut], len(data)); n != len(want) {
				t.Fatalf("%s cut at %d: %d bytes, the reference has %d", name, cut, n, len(want))
			}
		}
	}
}

// TestDecodeDamaged changes one byte of a stream at a time.
func TestDecodeDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, name := range []string{"program-1024", "zeros-64", "five"} {
		src, data := whole(t, name)
		for i := range src {
			bad := bytes.Clone(src)
			bad[i] ^= byte(1 + rng.IntN(255))
			compare(t, bad, min(len(data), 4000), 1+rng.IntN(300))
		}
	}
}

func TestDecodeRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		src := make([]byte, rng.IntN(300))
		for i := range src {
			src[i] = byte(rng.Uint32())
		}
		if len(src) > 0 && rng.IntN(4) > 0 {
			src[0] = ^byte(rng.IntN(maxProps + 1))
		}
		// Long runs of the same bits lead to where random ones don't.
		if n := len(src); n > 5 && rng.IntN(2) == 0 {
			from := 1 + rng.IntN(n-1)
			copy(src[from:], bytes.Repeat([]byte{[]byte{0, 0xff}[rng.IntN(2)]}, rng.IntN(n-from)))
		}
		compare(t, src, rng.IntN(2000), 1+rng.IntN(300))
	}
}

// compare decodes src at once and in steps, and compares with the reference.
func compare(t *testing.T, src []byte, limit, step int) {
	t.Helper()
	want, ok, finished := decodeReference(src, limit)
	dst, check := guarded(t, limit)
	once := new(Decoder)
	err := once.Reset(src)
	n := 0
	if err == nil {
		n, err = once.Decode(dst, 0)
	}
	if (err == nil) != ok || n != len(want) || !bytes.Equal(dst[:n], want) || once.Finished() != finished {
		t.Fatalf("Decode = %d, %v, finished %t; the reference has %d, %t, finished %t, of %x",
			n, err, once.Finished(), len(want), ok, finished, src)
	}
	if err != nil && !errors.Is(err, ErrCorrupt) {
		t.Fatalf("error %v does not wrap ErrCorrupt", err)
	}
	check()

	dst, check = guarded(t, limit)
	steps := new(Decoder)
	err = steps.Reset(src)
	n = 0
	for err == nil && n < limit {
		n, err = steps.Decode(dst[:min(n+step, limit)], n)
	}
	if (err == nil) != ok || n != len(want) || !bytes.Equal(dst[:n], want) || steps.Finished() != finished {
		t.Fatalf("in steps of %d: %d, %v, finished %t; the reference has %d, %t, finished %t, of %x",
			step, n, err, steps.Finished(), len(want), ok, finished, src)
	}
	check()
	if err != nil {
		if n, err = steps.Decode(dst, n); err == nil || n != len(want) {
			t.Fatalf("after an error: %d, %v", n, err)
		}
	}
}

func TestReset(t *testing.T) {
	props := func(lc, lp, pb int) byte { return ^byte((pb*5+lp)*9 + lc) }
	tests := []struct {
		name string
		src  []byte
		err  error
	}{
		{"nil", nil, ErrCorrupt},
		{"4 bytes", []byte{props(3, 0, 2), 0, 0, 0}, ErrCorrupt},
		{"5 bytes", []byte{props(3, 0, 2), 0, 0, 0, 0}, nil},
		{"lc 4", []byte{props(4, 0, 0), 0, 0, 0, 0}, nil},
		{"lc 5", []byte{props(5, 0, 0), 0, 0, 0, 0}, ErrCorrupt},
		{"lc 8", []byte{props(8, 0, 0), 0, 0, 0, 0}, ErrCorrupt},
		{"lp 4", []byte{props(0, 4, 0), 0, 0, 0, 0}, nil},
		{"lc 1, lp 4", []byte{props(1, 4, 0), 0, 0, 0, 0}, ErrCorrupt},
		{"lc 2, lp 2, pb 4", []byte{props(2, 2, 4), 0, 0, 0, 0}, nil},
		{"lc 3, lp 2", []byte{props(3, 2, 0), 0, 0, 0, 0}, ErrCorrupt},
		{"pb 5", []byte{props(0, 0, 5), 0, 0, 0, 0}, ErrCorrupt},
		{"zeros", make([]byte, 64), ErrCorrupt},
		{"code below the range", []byte{props(3, 0, 2), 0xff, 0xff, 0xff, 0xfe}, nil},
		{"code not below the range", []byte{props(3, 0, 2), 0xff, 0xff, 0xff, 0xff}, ErrCorrupt},
	}
	for _, tt := range tests {
		d := begin(t, stream(t, "five"))
		if err := d.Reset(tt.src); !errors.Is(err, tt.err) {
			t.Errorf("%s: Reset = %v, want %v", tt.name, err, tt.err)
		}
		if n, err := d.Decode(nil, 0); n != 0 || !errors.Is(err, tt.err) {
			t.Errorf("%s: Decode = %d, %v, want %v", tt.name, n, err, tt.err)
		}
	}
}

// TestResetReuses uses one Decoder for all streams, each left at another
// place: nothing of a stream is seen in the next.
func TestResetReuses(t *testing.T) {
	d := new(Decoder)
	for round, v := range append(vectors, vectors...) {
		src, data := whole(t, v.name)
		if err := d.Reset(src); err != nil {
			t.Fatal(err)
		}
		dst := make([]byte, len(data)*(1+round)/len(vectors)/2)
		if n, err := d.Decode(dst, 0); err != nil || n != len(dst) || !bytes.Equal(dst, data[:n]) {
			t.Fatalf("%s: %d of %d, %v", v.name, n, len(dst), err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	src, data := whole(t, "text")
	dst := make([]byte, len(data))
	if n, err := new(Decoder).Decode(dst, 0); n != 0 || !errors.Is(err, ErrCorrupt) {
		t.Errorf("without Reset: %d, %v", n, err)
	}
	d := begin(t, src)
	if _, err := d.Decode(dst[:100], 0); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{-1, 0, 99, 101} {
		if n, err := d.Decode(dst, at); n != at || !errors.Is(err, ErrCorrupt) {
			t.Errorf("at %d: %d, %v", at, n, err)
		}
	}
	if n, err := d.Decode(dst[:99], 100); n != 100 || !errors.Is(err, ErrCorrupt) {
		t.Errorf("with a short history: %d, %v", n, err)
	}
	if n, err := d.Decode(dst, 100); n != len(dst) || err != nil || !bytes.Equal(dst, data) {
		t.Errorf("at the right place: %d, %v", n, err)
	}
}

func TestFinished(t *testing.T) {
	text, data := whole(t, "text")
	zeros := stream(t, "zeros")
	last := bytes.Clone(text)
	last[len(last)-1]++
	tests := []struct {
		name string
		src  []byte
		size int
		want bool
	}{
		{"whole", text, len(data), true},
		{"nothing decoded", text, 0, false},
		{"a byte less", text, len(data) - 1, false},
		{"a byte behind", append(bytes.Clone(text), 0), len(data), false},
		{"code not 0", last, len(data), false},
		{"match goes on", zeros, 1_000_000 - 1, false},
		{"match ends", zeros, 1_000_000, true},
		{"empty", stream(t, "empty"), 0, true},
		{"empty and a byte", append(stream(t, "empty"), 0), 0, false},
		{"one", stream(t, "one"), 1, true},
		{"one less its last byte", stream(t, "one")[:5], 1, false},
	}
	for _, tt := range tests {
		d := begin(t, tt.src)
		if n, err := d.Decode(make([]byte, tt.size), 0); err != nil || n != tt.size {
			t.Errorf("%s: Decode = %d, %v", tt.name, n, err)
		}
		for range 2 {
			if got := d.Finished(); got != tt.want {
				t.Errorf("%s: Finished = %t", tt.name, got)
			}
		}
	}

	d := begin(t, text)
	if n, err := d.Decode(make([]byte, len(data)+1), 0); n != len(data) || !errors.Is(err, ErrCorrupt) || d.Finished() {
		t.Errorf("beyond the end: %d, %v, finished %t", n, err, d.Finished())
	}
	if new(Decoder).Finished() {
		t.Error("a Decoder without a stream is finished")
	}
	d = begin(t, stream(t, "empty"))
	if err := d.Reset(nil); !errors.Is(err, ErrCorrupt) || d.Finished() {
		t.Errorf("after Reset(nil): %v, finished %t", err, d.Finished())
	}
}

func TestAllocatesNothing(t *testing.T) {
	src, data := whole(t, "text")
	d := new(Decoder)
	if n := testing.AllocsPerRun(10, func() {
		if err := d.Reset(src); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Decode(data, 0); err != nil || !d.Finished() {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range vectors {
		src := stream(f, v.name)
		f.Add(src[:min(len(src), 3000)], uint16(min(v.size, 2000)), uint16(v.size/3))
	}
	f.Fuzz(func(t *testing.T, src []byte, limit, step uint16) {
		compare(t, src, int(limit), 1+int(step))
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"text", "program", "zeros", "program-1024"} {
		b.Run(name, func(b *testing.B) {
			src, data := whole(b, name)
			d := new(Decoder)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := d.Reset(src); err != nil {
					b.Fatal(err)
				}
				if n, err := d.Decode(data, 0); err != nil || n != len(data) {
					b.Fatal(n, err)
				}
			}
		})
	}
}
