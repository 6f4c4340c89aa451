package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/nodecache"
	"github.com/erofs-csi/erofs-csi/nodecache/filestore"
)

// The engine under test runs in a process of its own: the test binary again, with
// childEnv set. A test reads through fronts, maps them and kills their server; done
// by the server's own process, each of that could hang for ever.
const childEnv = "EROFS_CSI_ENGINE_CHILD"

// childConfig is what a child mounts.
type childConfig struct {
	StateDir string
	CacheDir string
	Front    string
	Store    int64 // bytes of the store of files, in CacheDir
	Mounts   []childMount

	Lazy      bool // mount none at first
	IdleCheck time.Duration
	Stress    int // rounds of mounting and releasing them in parallel, instead

	ImageLimit int64 // of the store of images, in bytes

	Holder   string // socket; the name is the state directory
	NoResend bool

	Long, Each time.Duration // see watchReads; 0: as always
}

type childMount struct {
	Domain string
	Volume string
	Image  string // reference
	Keep   bool
	Limit  int64

	Trusted, Kernel, IDMapped bool
	// Incomplete lets the image come while it is read, Never without what it takes to
	// resolve its reference.
	Incomplete, Never bool
}

// childStats is what a child tells of itself.
type childStats struct {
	Goroutines, Descriptors int
	Heap                    uint64 // bytes in use after a collection
	Anon                    int64  // bytes of RssAnon, what is free given back to the kernel
	KnownInodes             int
}

// childReport is what it answers, one line of JSON, when all is mounted.
type childReport struct {
	Fronts []childFront
}

type childFront struct {
	Path, Kind, Reason, Err string
	Trouble                 string
	Resumed                 bool
}

func TestMain(m *testing.M) {
	if config := os.Getenv(childEnv); config != "" {
		if err := runChild(config, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild mounts what config says. It lets go of the front whose number comes on
// stdin, or mounts it again when it is gone, tells of itself when "stats" comes, and
// lets go of all when stdin ends.
func runChild(config string, stdin io.Reader, stdout io.Writer) (err error) {
	ctx := context.Background()
	debug.SetGCPercent(GCPercent)
	var c childConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	store, err := nodecache.Open(nodecache.Config{Dir: c.CacheDir, LimitBytes: c.ImageLimit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := store.Tend(); err != nil {
		return err
	}
	files := filestore.Config{Dir: filepath.Join(c.CacheDir, "files"), Limit: c.Store}
	cfg := Config{StateDir: c.StateDir, Front: c.Front, Files: files, Images: store, noResend: c.NoResend, watch: pace{long: c.Long, each: c.Each}}
	if c.Holder != "" {
		h, err := holder.Dial(ctx, c.Holder, c.StateDir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.Close()) }()
		cfg.Holder = h
	}
	e, err := New(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close(ctx)) }()
	if c.IdleCheck > 0 {
		e.idle.check = c.IdleCheck
	}
	var report childReport
	if c.Stress > 0 {
		for _, problem := range stress(ctx, e, store, c) {
			report.Fronts = append(report.Fronts, childFront{Err: problem})
		}
		c.Mounts = nil
	}
	fronts := make([]*Front, len(c.Mounts))
	defer func() {
		for _, f := range fronts {
			if f != nil {
				err = errors.Join(err, f.Release(ctx))
			}
		}
	}()
	for i, m := range c.Mounts {
		var cf childFront
		if c.Lazy {
			report.Fronts = append(report.Fronts, cf)
			continue
		}
		if fronts[i], cf, err = mountChild(ctx, e, store, m); err != nil {
			return err
		}
		report.Fronts = append(report.Fronts, cf)
	}
	if err := e.EndResume(ctx); err != nil {
		return err
	}
	if err := json.NewEncoder(stdout).Encode(report); err != nil {
		return err
	}
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		if lines.Text() == "stats" {
			if err := json.NewEncoder(stdout).Encode(ownStats(e)); err != nil {
				return err
			}
			continue
		}
		if number, ok := strings.CutPrefix(lines.Text(), "look "); ok {
			n, err := strconv.Atoi(number)
			if err == nil {
				err = json.NewEncoder(stdout).Encode(lookAt(fronts[n]))
			}
			if err != nil {
				return err
			}
			continue
		}
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			return err
		}
		var cf childFront
		if f := fronts[n]; f != nil {
			fronts[n] = nil
			err = f.Release(ctx)
		} else {
			fronts[n], cf, err = mountChild(ctx, e, store, c.Mounts[n])
		}
		if err == nil {
			err = json.NewEncoder(stdout).Encode(cf)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mountChild mounts an image, which it keeps no longer than the front does.
func mountChild(ctx context.Context, e *Engine, store *nodecache.Store, m childMount) (*Front, childFront, error) {
	opts := nodecache.AcquireOptions{Lazy: m.Incomplete}
	if m.Never {
		opts.Policy = nodecache.Never
	}
	img, err := store.Acquire(ctx, m.Image, opts)
	if err != nil {
		return nil, childFront{}, err
	}
	defer img.Release()
	f, err := e.Mount(ctx, Request{
		Domain: m.Domain, VolumeID: m.Volume, Image: img, Keep: m.Keep, CacheLimit: m.Limit,
		Trusted: m.Trusted, Kernel: m.Kernel, IDMapped: m.IDMapped,
	})
	if err != nil {
		return nil, childFront{Err: err.Error()}, nil
	}
	return f, childFront{Path: f.Path(), Kind: f.Kind(), Reason: f.Reason(), Resumed: f.Resumed()}, nil
}

// lookAt tells how a front is now.
func lookAt(f *Front) childFront {
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	return childFront{Path: f.Path(), Kind: f.Kind(), Reason: f.Reason(), Err: text(f.Healthy()), Trouble: text(f.Trouble())}
}

func ownStats(e *Engine) (s childStats) {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s = childStats{Goroutines: runtime.NumGoroutine(), Descriptors: descriptors(), Heap: m.HeapAlloc, Anon: statusField("self", "RssAnon")}
	for _, d := range e.domains.snapshot() {
		n, _ := d.share.Len()
		s.KnownInodes += n
	}
	return s
}

// statusField is a size in /proc/<pid>/status, in bytes; -1: not there.
func statusField(pid, name string) int64 {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, name+": %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return -1
}

// stats asks the child for what it takes.
func (ch *child) stats(t *testing.T) (s childStats) {
	t.Helper()
	if _, err := fmt.Fprintln(ch.stdin, "stats"); err != nil {
		t.Fatal(err)
	}
	line, err := ch.stdout.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err != nil {
		t.Fatalf("stats: %v\n%s", err, ch.stderr)
	}
	return s
}

// child is an engine's process.
type child struct {
	childReport
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr *strings.Builder
}

// stateDir is a directory with a short name, for a socket's name has 107 bytes.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine-") //nolint:usetesting // the path of a test with a long name is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startChild starts an engine that mounts c, and ends it with the test.
func startChild(t *testing.T, c childConfig) *child {
	t.Helper()
	if c.StateDir == "" {
		c.StateDir = stateDir(t)
	}
	if c.CacheDir == "" {
		c.CacheDir = t.TempDir()
	}
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	ch := &child{cmd: exec.Command(os.Args[0]), stderr: new(strings.Builder)}
	ch.cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	ch.cmd.Stderr = ch.stderr
	if ch.stdin, err = ch.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := ch.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ch.stop(t) })
	ch.stdout = bufio.NewReader(stdout)
	line, err := ch.stdout.ReadBytes('\n')
	if err != nil {
		ch.stop(t)
		t.Fatalf("the engine's process ended early: %s", ch.stderr)
	}
	if err := json.Unmarshal(line, &ch.childReport); err != nil {
		t.Fatal(err)
	}
	return ch
}

// stop ends the engine in order, once, and fails the test when it does not end well.
func (ch *child) stop(t *testing.T) {
	t.Helper()
	if ch.cmd == nil {
		return
	}
	_ = ch.stdin.Close()
	hung := time.AfterFunc(time.Minute, func() { _ = ch.cmd.Process.Kill() })
	err := ch.cmd.Wait()
	if !hung.Stop() {
		t.Error("the engine's process did not end within a minute")
	}
	if err != nil {
		t.Errorf("the engine's process: %v\n%s", err, ch.stderr)
	}
	ch.cmd = nil
}

// toggle lets go of the nth front, or mounts it again.
func (ch *child) toggle(t *testing.T, n int) {
	t.Helper()
	if _, err := fmt.Fprintln(ch.stdin, n); err != nil {
		t.Fatal(err)
	}
	line, err := ch.stdout.ReadBytes('\n')
	if err == nil {
		ch.Fronts[n] = childFront{}
		err = json.Unmarshal(line, &ch.Fronts[n])
	}
	if err != nil {
		t.Fatalf("mount %d: %v\n%s", n, err, ch.stderr)
	}
}

// look tells how the nth front is now.
func (ch *child) look(t *testing.T, n int) (f childFront) {
	t.Helper()
	if _, err := fmt.Fprintln(ch.stdin, "look", n); err != nil {
		t.Fatal(err)
	}
	line, err := ch.stdout.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &f)
	}
	if err != nil {
		t.Fatalf("look at %d: %v\n%s", n, err, ch.stderr)
	}
	return f
}

// waitFront waits until the nth front is as wanted.
func (ch *child) waitFront(t *testing.T, n int, what string, ok func(childFront) bool) childFront {
	t.Helper()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		f := ch.look(t, n)
		if ok(f) {
			return f
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("front %d is not %s: %+v\n%s", n, what, f, ch.stderr)
		}
	}
}

// kill ends the engine by SIGKILL.
func (ch *child) kill(t *testing.T) {
	t.Helper()
	if err := ch.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = ch.cmd.Wait()
	ch.cmd = nil
}

// mustFront returns the nth front, of the kind that is wanted.
func (ch *child) mustFront(t *testing.T, n int, kind string) string {
	t.Helper()
	f := ch.Fronts[n]
	if f.Err != "" {
		t.Fatalf("mount %d: %s", n, f.Err)
	}
	if f.Kind != kind {
		t.Fatalf("mount %d: front %s (%s), want %s", n, f.Kind, f.Reason, kind)
	}
	return f.Path
}
