package filestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// content makes n bytes and their name.
func content(seed, n int) (data []byte, name string) {
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	data = make([]byte, n)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data, nameOf(data)
}

func nameOf(data []byte) string {
	sum := sha256.Sum256(data)
	h := hex.EncodeToString(sum[:])
	return fmt.Sprintf("/%s/%s-%x", h[:2], h[2:], len(data))
}

func mustOpen(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustLayer(t *testing.T, s *Store, domain string) *Layer {
	t.Helper()
	l, err := s.Layer(domain)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustPut(t *testing.T, l *Layer, seed, n int) (name string) {
	t.Helper()
	data, name := content(seed, n)
	if err := l.Put(t.Context(), name, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return name
}

// wantFile makes sure that a file is there with the right bytes.
func wantFile(t *testing.T, l *Layer, name string) {
	t.Helper()
	data, err := os.ReadFile(l.Dir() + name)
	if err != nil || nameOf(data) != name {
		t.Errorf("%s: %d bytes, %v", name, len(data), err)
	}
}

// files lists what is below a directory.
func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestFilesStay(t *testing.T) {
	cfg := Config{Dir: t.TempDir() + "/files", Limit: 100 << 20}
	s := mustOpen(t, cfg)
	l := mustLayer(t, s, "x")
	var names []string
	for i, n := range []int{1, 4095, 4096, 1 << 20, 3<<20 + 5} {
		names = append(names, mustPut(t, l, i, n))
		wantFile(t, l, names[i])
	}
	data, name := content(0, 1)
	if err := l.Put(t.Context(), name, bytes.NewReader(data)); err != nil {
		t.Errorf("put again: %v", err)
	}
	if other := mustLayer(t, s, "y"); other.Hold(names[0]) || other.Dir() == l.Dir() {
		t.Error("another domain has the file, too")
	}
	want := int64(4096 + 4096 + 4096 + 1<<20 + 3<<20 + 4096)
	if n, limit := s.Size(); n != want || limit != cfg.Limit {
		t.Errorf("%d bytes of %d, want %d of %d", n, limit, want, cfg.Limit)
	}
	s.Close()
	s = mustOpen(t, cfg)
	defer s.Close()
	l = mustLayer(t, s, "x")
	for _, name := range names {
		if !l.Hold(name) {
			t.Errorf("%s is not there any more", name)
		}
		wantFile(t, l, name)
	}
	if n, _ := s.Size(); n != want {
		t.Errorf("%d bytes after it was opened again, want %d", n, want)
	}
	l.Remove(names[1])
	if l.Hold(names[1]) || len(files(t, cfg.Dir)) != len(names)-1 {
		t.Errorf("a removed file is still there: %v", files(t, cfg.Dir))
	}
}

// The files unused for the longest make room, but those that are held do not.
func TestRoom(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Limit: 4 << 20}
	s := mustOpen(t, cfg)
	l := mustLayer(t, s, "x")
	var names []string
	for i := range 4 {
		names = append(names, mustPut(t, l, i, 1<<20))
	}
	data, name := content(4, 1<<20)
	if err := l.Put(t.Context(), name, bytes.NewReader(data)); !errors.Is(err, ErrFull) {
		t.Errorf("all files are held: %v, want %v", err, ErrFull)
	}
	for _, n := range names {
		l.Release(n)
	}
	if !l.Hold(names[0]) { // used last, and held
		t.Fatal("a file went too early")
	}
	l.Release(names[0])
	mustPut(t, l, 4, 1<<20)
	if l.Hold(names[1]) || !l.Hold(names[0]) || !l.Hold(names[2]) {
		t.Errorf("files %v: want those but the second, which was unused for the longest", files(t, cfg.Dir))
	}
	if data, name = content(5, 4<<20+1); !errors.Is(l.Put(t.Context(), name, bytes.NewReader(data)), ErrFull) {
		t.Error("a file larger than the store fits")
	}
	if len(files(t, cfg.Dir)) != 4 {
		t.Errorf("files %v: want four, none may go for one that never fits", files(t, cfg.Dir))
	}
	s.Close()

	// A smaller limit the next time.
	cfg.Limit = 2 << 20
	s = mustOpen(t, cfg)
	defer s.Close()
	if n, _ := s.Size(); n != 2<<20 || len(files(t, cfg.Dir)) != 2 {
		t.Errorf("%d bytes, %v: want two files", n, files(t, cfg.Dir))
	}
}

func TestDiskStaysFree(t *testing.T) {
	s := mustOpen(t, Config{Dir: t.TempDir(), Limit: 1 << 40, MinFree: 1 << 60})
	defer s.Close()
	data, name := content(1, 5000)
	if err := mustLayer(t, s, "x").Put(t.Context(), name, bytes.NewReader(data)); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "1152921504606846976 stay so") {
		t.Errorf("%v, want %v and why", err, ErrFull)
	}
}

// failingReader gives other bytes, fewer bytes or an error.
type failingReader func(p []byte, off int64) (int, error)

func (f failingReader) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestBadContentIsNotKept(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Limit: 100 << 20}
	s := mustOpen(t, cfg)
	defer s.Close()
	l := mustLayer(t, s, "x")
	data, name := content(1, 3<<20)
	flipped := bytes.Clone(data)
	flipped[2<<20] ^= 1
	broken := errors.New("disk error")
	canceled, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		what string
		ctx  context.Context
		r    io.ReaderAt
		want error
	}{
		{"another byte", t.Context(), bytes.NewReader(flipped), ErrMismatch},
		{"too short", t.Context(), bytes.NewReader(data[:2<<20]), io.ErrUnexpectedEOF},
		{"an error", t.Context(), failingReader(func(p []byte, off int64) (int, error) {
			if off > 0 {
				return 0, broken
			}
			return copy(p, data), nil
		}), broken},
		{"given up", canceled, failingReader(func(p []byte, off int64) (int, error) {
			cancel()
			return copy(p, data[off:]), nil
		}), context.Canceled},
	} {
		if err := l.Put(c.ctx, name, c.r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
		if n, _ := s.Size(); n != 0 || len(files(t, cfg.Dir)) != 0 || l.Hold(name) {
			t.Errorf("%s: left %d bytes, %v", c.what, n, files(t, cfg.Dir))
		}
	}
	func() {
		defer func() { _ = recover() }()
		_ = l.Put(t.Context(), name, failingReader(func([]byte, int64) (int, error) { panic("a bug of the reader") }))
		t.Error("the panic is gone")
	}()
	if n, _ := s.Size(); n != 0 || len(files(t, cfg.Dir)) != 0 || l.Hold(name) {
		t.Errorf("a panic left %d bytes, %v", n, files(t, cfg.Dir))
	}
	for _, bad := range []string{"", "/", name + "0", name[1:], "/.." + name, strings.ToUpper(name), name + "/x", "/ab/cd-1", name[:67] + "ffffffffffffffff"} {
		if err := l.Put(t.Context(), bad, bytes.NewReader(data)); err == nil {
			t.Errorf("%q is taken for a name", bad)
		}
	}
	if err := l.Put(t.Context(), name, bytes.NewReader(data)); err != nil {
		t.Errorf("the good one, after all: %v", err)
	}
	wantFile(t, l, name)
}

// Whatever is in the directory, Open leaves complete files of ours alone in it.
func TestOpenRepairs(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Limit: 100 << 20}
	s := mustOpen(t, cfg)
	l := mustLayer(t, s, "x")
	good, young, short := mustPut(t, l, 1, 5000), mustPut(t, l, 2, 5000), mustPut(t, l, 3, 5000)
	s.Close()
	_, unnamed := content(4, 5000)
	chmod := func(path string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), modeOnDisk); err != nil {
			t.Fatal(err)
		}
	}
	chmod(l.Dir()+young, modeNew)
	if err := os.Truncate(l.Dir()+short, 4096); err != nil {
		t.Fatal(err)
	}
	write(l.Dir() + unnamed + ".new")
	write(l.Dir() + "/ab/cd/ef")
	write(cfg.Dir + "/stray")
	write(cfg.Dir + "/0123/ab/file")
	if err := os.Symlink("/etc/passwd", l.Dir()+unnamed); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, cfg)
	defer s.Close()
	want := strings.TrimPrefix(l.Dir(), cfg.Dir) + good
	if got := files(t, cfg.Dir); len(got) != 1 || got[0] != want {
		t.Errorf("files %v, want %s alone", got, want)
	}
	l = mustLayer(t, s, "x")
	if !l.Hold(good) || l.Hold(young) || l.Hold(short) || l.Hold(unnamed) {
		t.Error("it holds what is not there, or not what is")
	}
	wantFile(t, l, good)
}

// Many put and hold the same files, with too little room.
func TestTogether(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Limit: 3 << 20}
	s := mustOpen(t, cfg)
	var wg sync.WaitGroup
	for worker := range 8 {
		l := mustLayer(t, s, fmt.Sprint(worker%2))
		wg.Go(func() {
			for i := range 60 {
				data, name := content((i*7+worker)%10, 300_000)
				if !l.Hold(name) {
					err := l.Put(t.Context(), name, bytes.NewReader(data))
					if errors.Is(err, ErrFull) || errors.Is(err, ErrBusy) {
						continue
					}
					if err != nil {
						t.Error(err)
					}
				}
				wantFile(t, l, name)
				l.Release(name)
			}
		})
	}
	wg.Wait()
	s.Close()
	if n, _ := s.Size(); n > cfg.Limit || int64(len(files(t, cfg.Dir)))*(300_000+4095)&^4095 > cfg.Limit+4096*10 {
		t.Errorf("%d bytes, %d files", n, len(files(t, cfg.Dir)))
	}
	s = mustOpen(t, cfg)
	defer s.Close()
	for _, domain := range []string{"0", "1"} {
		l := mustLayer(t, s, domain)
		for _, name := range files(t, l.Dir()) {
			wantFile(t, l, name)
		}
	}
}

const childEnv = "EROFS_CSI_FILESTORE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fill(dir)
	}
	os.Exit(m.Run())
}

// fill puts files until it is killed.
func fill(dir string) {
	s, err := Open(Config{Dir: dir, Limit: 20 << 20})
	if err != nil {
		panic(err)
	}
	l, err := s.Layer("x")
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stdout, "ready")
	for i := 0; ; i++ {
		data, name := content(i%100, 200_000+i%7)
		if err := l.Put(context.Background(), name, bytes.NewReader(data)); err != nil {
			panic(err)
		}
		l.Release(name)
	}
}

// A process that is killed while it writes leaves complete files, or none.
func TestKilled(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Limit: 20 << 20}
	kept := 0
	for round := range 10 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+cfg.Dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+round*11) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s := mustOpen(t, cfg)
		l := mustLayer(t, s, "x")
		for _, name := range files(t, l.Dir()) {
			wantFile(t, l, name)
			kept++
		}
		s.Close()
	}
	if kept == 0 {
		t.Error("nothing was ever kept: this test proves nothing")
	}
}
