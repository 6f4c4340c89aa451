package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// startHolder serves a holder until the test ends.
func startHolder(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(stateDir(t), "holder.sock")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- holder.Serve(ctx, socket, t.Logf) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("holder: %v", err)
		}
	})
	return socket
}

// bind mounts what a front shows where it stays when the engine is killed.
func bind(t *testing.T, front string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount(front, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// treeFiles are the regular files below a directory, by their path in it.
func treeFiles(t *testing.T, tree string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files[path[len(tree)+1:]], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// verifier reads the files of a mount again and again, and compares.
type verifier struct {
	reads  atomic.Int64
	stall  atomic.Int64 // the longest read, in ns
	mu     sync.Mutex
	errors []error // GUARDED_BY(mu)
	stop   chan struct{}
	wg     sync.WaitGroup
}

func (v *verifier) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.errors = append(v.errors, err)
}

// read runs until v.stop is closed. flags are for open(2); O_DIRECT has each read come
// to the server.
func (v *verifier) read(dir string, files map[string][]byte, flags int) {
	v.wg.Go(func() {
		for {
			for name, want := range files {
				select {
				case <-v.stop:
					return
				default:
				}
				start := time.Now()
				got, err := readFlags(filepath.Join(dir, name), flags)
				if took := int64(time.Since(start)); took > v.stall.Load() {
					v.stall.Store(took)
				}
				v.reads.Add(1)
				switch {
				case err != nil:
					v.fail(fmt.Errorf("%s at %s: %w", name, time.Now().Format("04:05.000000"), err))
				case !bytes.Equal(got, want):
					v.fail(fmt.Errorf("%s: %d bytes, want %d, or other ones", name, len(got), len(want)))
				}
			}
		}
	})
}

func readFlags(path string, flags int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if flags&unix.O_DIRECT == 0 {
		_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	}
	var data []byte
	buf := make([]byte, 256<<10)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read at %d: %w", len(data), err)
		}
		if n == 0 {
			return data, nil
		}
		data = append(data, buf[:n]...)
	}
}

// writeTree makes n files, every other of them the same for each seed, of some sizes up
// to most.
func writeTree(t *testing.T, seed uint64, n, most int) string {
	t.Helper()
	tree := t.TempDir()
	for i := range n {
		r := rand.New(rand.NewPCG(seed*uint64(i%2), uint64(i)))
		data := make([]byte, r.IntN(most))
		for k := range data {
			data[k] = byte(r.Uint32() % 23)
		}
		name := filepath.Join(tree, fmt.Sprintf("d%d", i%7), fmt.Sprint(i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644), os.Chtimes(name, time.Unix(7, 0), time.Unix(7, int64(i%3)))); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// TestResume kills an engine under readers, some of whose reads are in flight, and starts
// another one: no read fails.
func TestResume(t *testing.T) { testResume(t, 5, false) }

// TestResumeWithoutResend is the same where the kernel does not send requests again.
func TestResumeWithoutResend(t *testing.T) { testResume(t, 10, true) }

func testResume(t *testing.T, kills int, noResend bool) {
	t.Helper()
	mkfs := images.NewestMkfs(t)
	var files []map[string][]byte
	var paths []string
	for n := range 2 {
		tree := writeTree(t, uint64(n+1), 60, 300_000)
		files = append(files, treeFiles(t, tree))
		paths = append(paths, images.Build(t, mkfs, [][]string{nil, {"-zlz4"}}[n], tree))
	}
	resumed := func(t *testing.T, front string) {
		t.Helper()
		c := childConfig{
			Front: front, StateDir: stateDir(t), CacheDir: t.TempDir(), Holder: startHolder(t), Store: 1 << 20, NoResend: noResend,
			Mounts: []childMount{{Domain: "d", Volume: "0", Image: paths[0]}, {Domain: "d", Volume: "1", Image: paths[1]}, {Domain: "e", Volume: "2", Image: paths[1]}},
		}
		ch := startChild(t, c)
		v := &verifier{stop: make(chan struct{})}
		var dirs []string
		for i, f := range ch.Fronts {
			if f.Err != "" || f.Resumed {
				t.Fatalf("%+v", f)
			}
			dirs = append(dirs, bind(t, f.Path))
			which := files[min(i, 1)]
			// The first close of a file is a request. The engine's process closes what is
			// open here, and must not wait for itself.
			for name := range which {
				if _, err := readFlags(filepath.Join(dirs[i], name), 0); err != nil {
					t.Fatal(err)
				}
				break
			}
			v.read(dirs[i], which, 0)
			v.read(dirs[i], which, unix.O_DIRECT)
		}
		var logs []string
		for range kills {
			time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
			ch.kill(t)
			logs = append(logs, ch.stderr.String())
			ch = startChild(t, c)
			for _, f := range ch.Fronts {
				if f.Err != "" || !f.Resumed || f.Kind != front {
					t.Errorf("%+v", f)
				}
			}
		}
		time.Sleep(300 * time.Millisecond)
		close(v.stop)
		v.wg.Wait()
		for i, err := range v.errors {
			if i < 10 {
				t.Error(err)
			}
		}
		if len(v.errors) > 0 {
			t.Log(strings.Join(logs, "\n--- killed\n"), ch.stderr)
		}
		t.Logf("%d reads, %d failed, the longest took %v", v.reads.Load(), len(v.errors), time.Duration(v.stall.Load()))
		// A front of the resumed engine shares with those of before.
		for _, dir := range dirs {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		}
		ch.stop(t)
	}
	for _, front := range fronts(t) {
		if noResend && front == FrontPassthrough {
			continue // where there is this one, the kernel sends requests again
		}
		t.Run(front, func(t *testing.T) { resumed(t, front) })
	}
}

// refusing is a Holder that keeps nothing.
type refusing struct{ Holder }

func (refusing) Put(string, []byte, ...*os.File) error { return holder.ErrRefused }

// TestKeepRefused: what a holder does not keep is not taken for something that it keeps.
func TestKeepRefused(t *testing.T) {
	images.Need(t, "root", os.Getuid() == 0)
	e := &Engine{cfg: Config{Holder: refusing{}}}
	ledger, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	k, err := e.keepMount("key", keptMeta{}, "/proc", nil, ledger)
	if k != nil || !errors.Is(err, holder.ErrRefused) {
		t.Errorf("got %v, %v", k, err)
	}
	if err := ledger.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the ledger is still open: %v", err)
	}
	if f := e.openElsewhere(&domain{kept: k}); f != nil {
		t.Error("files are opened by a holder that does not keep their mount")
	}
}
