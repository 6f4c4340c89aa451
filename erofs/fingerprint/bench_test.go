package fingerprint_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// noiseImage is an image in memory of files of 8 MiB each, so many.
func noiseImage(b *testing.B, files int) (*erofs.Image, []fingerprint.File, int64) {
	b.Helper()
	dir := b.TempDir()
	rng := rand.NewChaCha8([32]byte{1})
	for i := range files {
		data := make([]byte, 8<<20)
		_, _ = rng.Read(data)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	data, err := os.ReadFile(images.Build(b, images.NewestMkfs(b), nil, dir))
	if err != nil {
		b.Fatal(err)
	}
	im, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		b.Fatal(err)
	}
	list, err := fingerprint.Files(im)
	if err != nil {
		b.Fatal(err)
	}
	return im, list, int64(len(data))
}

// BenchmarkBuild hashes files of an image in memory: the bytes a second of all CPUs.
// With one file it is those of one.
func BenchmarkBuild(b *testing.B) {
	for _, files := range []int{1, 16} {
		im, list, size := noiseImage(b, files)
		b.Run(fmt.Sprint(files), func(b *testing.B) {
			b.SetBytes(int64(files) * 8 << 20)
			for b.Loop() {
				if _, _, err := fingerprint.Build(b.Context(), im, list, size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSHA256 is the hash alone, on one CPU.
func BenchmarkSHA256(b *testing.B) {
	data := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		sha256.Sum256(data)
	}
}

// BenchmarkRequestsWhileHashing answers requests that come through a pipe, as FUSE's
// do through a device, while images are hashed on all CPUs and while none is.
func BenchmarkRequestsWhileHashing(b *testing.B) {
	im, list, size := noiseImage(b, 16)
	for _, hashing := range []bool{false, true} {
		b.Run(fmt.Sprintf("hashing=%v", hashing), func(b *testing.B) {
			stop := make(chan struct{})
			var hashed atomic.Int64
			done := make(chan struct{})
			go func() {
				defer close(done)
				for hashing {
					if _, r, err := fingerprint.Build(b.Context(), im, list, size); err == nil {
						hashed.Add(r.Bytes)
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			}()
			r, w, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			answers := make(chan time.Duration, 1)
			go func() {
				var p [8]byte
				for {
					if _, err := r.Read(p[:]); err != nil {
						return
					}
					answers <- time.Duration(time.Now().UnixNano() - int64(binary.LittleEndian.Uint64(p[:])))
				}
			}()
			began := time.Now()
			var took []time.Duration
			for b.Loop() {
				if _, err := w.Write(binary.LittleEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))); err != nil {
					b.Fatal(err)
				}
				took = append(took, <-answers)
				time.Sleep(time.Millisecond)
			}
			rate := float64(hashed.Load()) / time.Since(began).Seconds()
			close(stop)
			<-done
			_, _ = r.Close(), w.Close()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/p99")
			b.ReportMetric(rate/1e9, "GB/s")
			b.ReportMetric(float64(runtime.GOMAXPROCS(0)), "CPUs")
		})
	}
}
