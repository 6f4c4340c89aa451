package nodecache

import (
	"os"
	"path/filepath"
	"testing"
)

// A file that moves from one directory of the store to another while all are listed
// is counted once: the limit would not hold if a blob could be missed.
func TestUsedCountsMovingFilesOnce(t *testing.T) {
	s := openStore(t, Config{})
	const size = 1 << 20
	here, there := filepath.Join(s.dir.blobs, "f"), filepath.Join(s.dir.tmp, "f")
	if err := os.WriteFile(here, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := s.disk.rename(here, there); err != nil {
				stopped <- err
				return
			}
			here, there = there, here
		}
	}()
	for range 2000 {
		now, promised, err := s.used()
		if err != nil || now < size || now >= 2*size || promised != now {
			t.Errorf("%d bytes, %d promised, %v; the file has %d", now, promised, err, size)
			break
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}
