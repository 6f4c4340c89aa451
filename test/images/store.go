package images

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Store puts an image into the store in dir, which is not open, as if it had been
// pulled by the reference HOST/NAME:TAG, with a TAG that begins with v. It returns the path of the blob.
func Store(t testing.TB, dir, image, ref string) (blob string) {
	t.Helper()
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	hash := func(data []byte) string {
		sum := sha256.Sum256(data)
		return hex.EncodeToString(sum[:])
	}
	digest := hash(content)
	blob = filepath.Join(dir, "blobs", "sha256", digest)
	files := map[string][]byte{blob: content}
	name, _, _ := strings.Cut(ref, ":v") // the tag
	for _, r := range []string{ref, name + "@sha256:" + digest} {
		record := fmt.Sprintf(`{"reference": %q, "resolved": "sha256:%[2]s", "manifest": "sha256:%[2]s", "blob": "sha256:%[2]s", "size": %d}`, r, digest, len(content))
		files[filepath.Join(dir, "refs", hash([]byte(r)))] = []byte(record)
	}
	for name, data := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return blob
}
