package nodecache

import (
	"errors"
	"os"
	"sync"
	"testing"
)

func TestClone(t *testing.T) {
	dir := t.TempDir()
	a, b := writeFile(t, dir+"/a", []byte("primary")), writeFile(t, dir+"/b", []byte("device"))
	noLeaks(t, func(t *testing.T) {
		s := openStore(t, Config{})
		img, err := s.Acquire(t.Context(), a+",device="+b, AcquireOptions{})
		if err != nil {
			t.Fatal(err)
		}
		clone := img.Clone()
		if clone.ID() != img.ID() || clone.Reference() != img.Reference() || clone.SidecarPath("index") != img.SidecarPath("index") {
			t.Error("the clone is another image")
		}
		img.Release()
		img.Release() // only once counts: the clone still holds the files
		wantContent(t, clone.Blob(), []byte("primary"))
		wantContent(t, clone.Devices()[0], []byte("device"))
		var wg sync.WaitGroup
		for range 8 {
			more := clone.Clone()
			wg.Go(func() {
				wantContent(t, more.Blob(), []byte("primary"))
				more.Release()
			})
		}
		wg.Wait()
		clone.Release()
		if _, err := clone.Blob().ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after the last release: %v", err)
		}
	})
}
