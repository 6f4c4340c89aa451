package fingerprint

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// workers is how many files are hashed at a time: one fewer than what the runtime
// takes for the number of CPUs that are ours, which knows of the container's limit,
// before the program changes it for other reasons. The CPU left is for who reads
// mounted volumes: with all of them hashing, a request waited 4 to 6 ms for the kernel's
// scheduler (BenchmarkRequestsWhileHashing).
var workers = max(1, runtime.GOMAXPROCS(0)-1)

// readSize is how much of a file is read at a time: the largest FUSE request, and
// enough for one O_DIRECT read to reach a disk's bandwidth.
const readSize = 1 << 20

// hashStep is how many bytes are hashed before others get the CPU, where it is the only
// one: some 40 µs. Without it they wait for the 10 ms after which the runtime takes a CPU
// away.
const hashStep = 64 << 10

// Result is what Build found besides the index.
type Result struct {
	Files int   // files hashed
	Bytes int64 // bytes hashed
	// Unreadable counts the files left out because they cannot be read, Forged
	// those whose content is not what the image says of it, and FirstError says
	// why for one of them.
	Unreadable, Forged int
	FirstError         error
}

// ErrForged says that an image carries a fingerprint that its file does not have.
var ErrForged = errors.New("the image's own fingerprint is not that of the content")

// errBudget is why a file is left out that claims more data than its image can hold.
var errBudget = errors.New("the image's files claim more than 256 times its size")

// MaxRatio bounds the work: the files hashed hold at most this many bytes for each
// byte of the image. Only images that are nearly all zeros come near it: a hole of
// exabytes costs a few bytes, and 4 KiB can decompress to 12 MiB of one byte.
const MaxRatio = 256

// Build hashes files, as Files lists them, on all CPUs but one, in the order of
// their nids, which is about the order of their data. It uses 1 MiB a worker, and
// reads at most MaxRatio times imageSize, which is in bytes and counts extra
// devices; the largest files are left out first.
//
// A file that cannot be read, or of which the image itself claims another
// fingerprint, is left out and counted; the only errors are those of ctx.
func Build(ctx context.Context, im *erofs.Image, files []File, imageSize int64) (*Index, Result, error) {
	within := affordable(files, imageSize)
	sums := make([]Sum, len(files))
	errs := make([]error, len(files))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(workers, len(files)) {
		wg.Go(func() {
			buf := make([]byte, readSize)
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= len(files) {
					return
				}
				if !within[i] {
					errs[i] = errBudget
					continue
				}
				sums[i], errs[i] = hash(ctx, im, files[i], buf)
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, Result{}, err
	}

	var r Result
	kept := 0
	files = slices.Clone(files)
	for i, f := range files {
		if err := errs[i]; err != nil {
			if errors.Is(err, ErrForged) {
				r.Forged++
			} else {
				r.Unreadable++
			}
			r.FirstError = cmp.Or(r.FirstError, fmt.Errorf("nid %d: %w", f.NID, err))
			continue
		}
		r.Files++
		r.Bytes += f.Size
		files[kept], sums[kept] = f, sums[i]
		kept++
	}
	return newIndex(files[:kept], sums[:kept], len(files)), r, nil
}

// hash reads one file whole through buf. A bug of the reader that one image meets
// must not take down the node's other volumes: a panic is that file's error.
func hash(ctx context.Context, im *erofs.Image, f File, buf []byte) (sum Sum, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	in, err := im.Inode(f.NID)
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	for off := int64(0); off < f.Size; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		n, err := in.ReadAt(buf[:min(int64(len(buf)), f.Size-off)], off)
		if err != nil && err != io.EOF { //nolint:errorlint // io.EOF is returned bare by contract
			return sum, err
		}
		if n == 0 {
			return sum, io.ErrUnexpectedEOF
		}
		for part := range slices.Chunk(buf[:n], hashStep) {
			h.Write(part)
			runtime.Gosched()
		}
		off += int64(n)
	}
	h.Sum(sum[:0])
	claim, ok, err := in.ImageFingerprint()
	if err != nil {
		return sum, err
	}
	if ok && !bytes.Equal(claim, sum[:]) {
		return sum, fmt.Errorf("%w: sha256:%x, not sha256:%x", ErrForged, sum, claim)
	}
	return sum, nil
}

// affordable tells of each file whether it is among the smallest that together
// stay within MaxRatio times the image's size.
func affordable(files []File, imageSize int64) []bool {
	order := make([]int, len(files))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(files[a].Size, files[b].Size) })
	ok := make([]bool, len(files))
	left := min(imageSize, math.MaxInt64/MaxRatio) * MaxRatio
	for _, i := range order {
		if left -= files[i].Size; left < 0 {
			break
		}
		ok[i] = true
	}
	return ok
}
