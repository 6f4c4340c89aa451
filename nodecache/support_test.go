package nodecache

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/test/images"
)

func needRoot(t testing.TB) {
	t.Helper()
	images.Need(t, "root", os.Geteuid() == 0)
}

// randomBytes are n bytes that depend on seed.
func randomBytes(seed uint64, n int) []byte {
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	p := make([]byte, n)
	_, _ = src.Read(p)
	return p
}

func writeFile(t testing.TB, path string, p []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// quick retries as often as the default, without the waiting.
var quick = retryPolicy{attempts: 4, base: time.Millisecond, max: 5 * time.Millisecond, patience: 5 * time.Millisecond, stall: 2 * time.Second, progress: 1 << 20}

// openStore opens a store that is closed at the end of the test.
func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	return openStoreOn(t, cfg, disk{})
}

func openStoreOn(t testing.TB, cfg Config, d disk) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.ReserveBytes == 0 {
		cfg.ReserveBytes = -1
	}
	s, err := open(cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	s.retry, s.lazySpan = quick, slowSpan
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func acquire(t testing.TB, s *Store, ref string, opts AcquireOptions) *Image {
	t.Helper()
	img, err := s.Acquire(t.Context(), ref, opts)
	if err != nil {
		t.Fatalf("acquire %s: %v", ref, err)
	}
	t.Cleanup(img.Release)
	return img
}

// wantError checks the sentinel and that the text holds all of the words.
func wantError(t testing.TB, err, sentinel error, words ...string) {
	t.Helper()
	if !errors.Is(err, sentinel) {
		t.Fatalf("error %v, want one that wraps %q", err, sentinel)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error of more than one line: %q", err)
	}
}

func wantContent(t testing.TB, b *Blob, want []byte) {
	t.Helper()
	if b.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", b.Size(), len(want))
	}
	got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("content %x, want %x", sha256.Sum256(got), sha256.Sum256(want))
	}
}

// wantFiles checks which regular files are below a store directory, lock aside.
func wantFiles(t testing.TB, dir string, want ...string) {
	t.Helper()
	got := filesBelow(t, dir)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files in the store:\n got %q\nwant %q", got, want)
	}
}

func filesBelow(t testing.TB, dir string) []string {
	t.Helper()
	var got []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if rel, _ := filepath.Rel(dir, path); !d.IsDir() && rel != "lock" {
			got = append(got, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	return got
}

// noLeaks runs fn and requires that all goroutines and descriptors it made are
// gone soon after it returned.
func noLeaks(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	fds, routines := openDescriptors(t), runtime.NumGoroutine()
	t.Run("run", fn)
	deadline := time.Now().Add(5 * time.Second)
	for {
		nowFds, now := openDescriptors(t), runtime.NumGoroutine()
		if len(nowFds) <= len(fds) && now <= routines {
			return
		}
		if time.Now().After(deadline) {
			stack := make([]byte, 64<<10)
			stack = stack[:runtime.Stack(stack, true)]
			t.Fatalf("%d goroutines, before %d; descriptors %q, before %q\n%s", now, routines, nowFds, fds, stack)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func openDescriptors(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var fds []string
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds = append(fds, fmt.Sprintf("%s=%s", e.Name(), to))
		}
	}
	return fds
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
