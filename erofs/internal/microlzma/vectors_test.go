package microlzma

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// vectors are the streams of testdata, with the length and the SHA-256 of what
// they decode to.
var vectors = []struct {
	name string
	size int
	sum  string
}{
	{"text", 25012, "600982534d9871c5efb2f762c3c6347f2abe73328db2badae45f179fb796f41d"},
	{"program", 48000, "340a251092bbbb7a01e46148711c871f178efeccdbc5ecc75d67467bfb012f52"},
	{"zeros", 1000000, "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025"},
	{"periods", 44579, "d06384656fc4c3b7c5509232ed0f3df71df9a116414e55e78876eec4fcdd99ee"},
	{"random", 600, "3868f7fa45f3972b635ba9dac8fba6031da64cbcbe2618bfdf0697d5ac978c71"},
	{"mixed-lc0-lp0-pb0", 5000, "c51564af3afceb43f4e1213ced876a06807ac2f06d45d62f6a608274b6341226"},
	{"mixed-lc4-lp0-pb0", 5000, "c51564af3afceb43f4e1213ced876a06807ac2f06d45d62f6a608274b6341226"},
	{"mixed-lc0-lp4-pb4", 5000, "c51564af3afceb43f4e1213ced876a06807ac2f06d45d62f6a608274b6341226"},
	{"mixed-lc1-lp3-pb1", 5000, "c51564af3afceb43f4e1213ced876a06807ac2f06d45d62f6a608274b6341226"},
	{"mixed-lc2-lp2-pb3", 5000, "c51564af3afceb43f4e1213ced876a06807ac2f06d45d62f6a608274b6341226"},
	{"mixed-lc3-lp1-pb2", 5000, "c51564af3afceb43f4e1213ced876a06807ac2f06d45d62f6a608274b6341226"},
	{"five", 5, "bda020b07cda70c4e415fe46be04bfd2692b4718f551849a02ec54dc32b11b95"},
	{"one", 1, "a9f51566bd6705f7ea6ad54bb9deb449f795582d6529a0e22207b8981233ec58"},
	{"empty", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
	{"text-4096", 9728, "4d783eeaabd96a5e40053a1fdd1292a79a8d0b4b3429a70ed8822bf696c76211"},
	{"program-1024", 1402, "09f5a6e5512dfda4024c804e996f25e80ce47a0397778ecf714e534bc55a718c"},
	{"zeros-64", 30850, "2d6e7312bcad36e3c287742393958377b84fcabe271cb7432855d556818c67c2"},
}

// stream returns the stream of a vector.
func stream(t testing.TB, name string) []byte {
	t.Helper()
	src, err := os.ReadFile(filepath.Join("testdata", name+".mlz"))
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// whole returns the stream of a vector and its data, which is checked.
func whole(t testing.TB, name string) (src, data []byte) {
	t.Helper()
	src = stream(t, name)
	for _, v := range vectors {
		if v.name != name {
			continue
		}
		data = make([]byte, v.size)
		var d Decoder
		if err := d.Reset(src); err != nil {
			t.Fatalf("%s: Reset: %v", name, err)
		}
		if n, err := d.Decode(data, 0); err != nil || n != v.size || !d.Finished() {
			t.Fatalf("%s: Decode = %d, %v, finished %t, want %d", name, n, err, d.Finished(), v.size)
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != v.sum {
			t.Fatalf("%s: the data differs", name)
		}
	}
	return src, data
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) { whole(t, v.name) })
	}
	files, err := filepath.Glob("testdata/*.mlz")
	if err != nil || len(files) != len(vectors) {
		t.Errorf("%d streams in testdata, %v; want %d", len(files), err, len(vectors))
	}
}
