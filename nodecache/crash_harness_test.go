package nodecache

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A crashTest is something done to a store that may be cut off at any step of its
// disk. To add one: put what it does into crashRuns, and call killed, powerCut and
// stepFails with a check of what must hold of the directory that is left.
type crashTest struct {
	name string // in crashRuns
	arg  string // handed to the run: a reference, or what else it needs; no newline
	// prepare fills the directory before; nil: it is empty, or not there.
	prepare func(t *testing.T, dir string)
	// check opens the store that is left. done says that the run had returned nil.
	check func(t *testing.T, dir string, done bool)
	steps int // it takes at least
}

// crashRuns are what can be cut off, by name: a process that kills itself runs them,
// too. All that they change in dir must go through d.
var crashRuns = map[string]func(dir, arg string, d disk) error{
	"pull":  scenario,
	"evict": evictScenario,
	"pin":   pinScenario,
}

// steps numbers what a store does to its directory and can stop at any of it.
type steps struct {
	mu   sync.Mutex
	log  []string // "step name", the name below the directory
	stop func(n int) error
}

func (c *steps) disk(dir string) disk {
	return disk{before: func(step, path string) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		rel, _ := filepath.Rel(dir, path)
		c.log = append(c.log, step+" "+rel)
		if c.stop == nil {
			return nil
		}
		return c.stop(len(c.log))
	}}
}

// memoryDir is t.TempDir in memory, where that can be had: crashes are acted out
// here, and a disk would only make the many fsyncs slow.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nodecache-test-") //nolint:usetesting // not in TMPDIR
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (c crashTest) prepared(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(memoryDir(t), "store")
	if c.prepare != nil {
		c.prepare(t, dir)
	}
	return dir
}

const crashEnv = "NODECACHE_TEST_CRASH"

// crashChild runs what crashEnv says and kills itself at a step.
func crashChild() {
	arg := strings.SplitN(os.Getenv(crashEnv), "\n", 4)
	at, err := strconv.Atoi(arg[0])
	if err != nil || len(arg) != 4 {
		os.Exit(3)
	}
	c := steps{stop: func(n int) error {
		if n == at {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return nil
	}}
	if err := crashRuns[arg[1]](arg[2], arg[3], c.disk(arg[2])); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(4)
	}
	os.Exit(0)
}

// killed kills a process by SIGKILL before each of its steps.
func (c crashTest) killed(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for at := 1; ; at++ {
		dir := c.prepared(t)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d\n%s\n%s\n%s", crashEnv, at, c.name, dir, c.arg))
		out, err := cmd.CombinedOutput()
		if err == nil {
			if at <= c.steps {
				t.Fatalf("only %d steps", at-1)
			}
			c.check(t, dir, true)
			return
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() == false {
			t.Fatalf("step %d: %v\n%s", at, err, out)
		}
		c.check(t, dir, false)
		if t.Failed() {
			t.Fatalf("killed before step %d", at)
		}
	}
}

// stepFails has each step fail once, in each way that a disk fails. The run must say
// so, unless the step is one of which harmless says that it may fail, and leave no
// temporary file.
func (c crashTest) stepFails(t *testing.T, harmless func(step string) bool) {
	t.Helper()
	for _, errno := range []error{unix.EIO, unix.ENOSPC, unix.EDQUOT} {
		for at := 1; ; at++ {
			dir := c.prepared(t)
			var failed string
			var n steps
			n.stop = func(i int) error {
				if i == at {
					failed = n.log[i-1]
					return errno
				}
				return nil
			}
			var err error
			noLeaks(t, func(*testing.T) { err = crashRuns[c.name](dir, c.arg, n.disk(dir)) })
			if failed == "" {
				if at <= c.steps || err != nil {
					t.Fatalf("only %d steps, %v", at-1, err)
				}
				break
			}
			if harmless(failed) {
				if err != nil {
					t.Errorf("%s: %v", failed, err)
				}
			} else if !errors.Is(err, errno) {
				t.Errorf("%s: error %v, want %v", failed, err, errno)
			} else if at > 3 && errors.Is(err, ErrNoSpace) != full(errno) { // until then it is being opened
				t.Errorf("%s: error %v", failed, err)
			}
			if names, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(names) != 0 {
				t.Errorf("%s: %q was left behind", failed, names)
			}
			c.check(t, dir, false)
		}
	}
}

// powerCut replays the steps on a model of a disk that keeps as little as POSIX lets
// it. At each step it takes the directory as it may come back:
//
//   - least: nothing that was not synced survives. Files have the content of their
//     last fsync, names are those of the last fsync of their directory, so that what
//     was removed or renamed since is back;
//   - holes: all is as it was, but of files that changed since they were synced only
//     the length;
//   - empty: the same, and those files are empty;
//   - some 0, 1, 2: each name and each content by itself is one of these, at random.
//
// What was there before the run is durable.
func (c crashTest) powerCut(t *testing.T) {
	t.Helper()
	dir := c.prepared(t)
	model := newPowerModel(t, dir)
	if err := crashRuns[c.name](dir, c.arg, disk{before: model.before}); err != nil {
		t.Fatal(err)
	}
	model.snapshot("the end")
	if len(model.snapshots) <= c.steps {
		t.Fatalf("only %d steps", len(model.snapshots)-1)
	}
	for i, snap := range model.snapshots {
		for _, how := range slices.Sorted(maps.Keys(snap.files)) {
			t.Run(fmt.Sprintf("%d %s/%s", i, snap.step, how), func(t *testing.T) {
				dir := memoryDir(t)
				for name, content := range snap.files[how] {
					writeFile(t, filepath.Join(dir, name), content)
				}
				c.check(t, dir, i == len(model.snapshots)-1)
			})
		}
	}
}

type powerModel struct {
	t    *testing.T
	dir  string
	pend func() // what the step under way makes durable, once it is done
	rng  *rand.Rand

	live      map[string]*modelFile // by name below dir
	durable   map[string]*modelFile
	snapshots []powerSnapshot
}

// modelFile is an inode.
type modelFile struct {
	ino     uint64
	now     []byte
	synced  []byte // content at the last fsync
	isSaved bool   // there was one
}

type powerSnapshot struct {
	step  string
	files map[string]map[string][]byte // by how, by name
}

func newPowerModel(t *testing.T, dir string) *powerModel {
	m := &powerModel{t: t, dir: dir, rng: rand.New(rand.NewPCG(1, 2)), live: map[string]*modelFile{}}
	m.look()
	for _, f := range m.live {
		f.synced, f.isSaved = f.now, true
	}
	m.durable = maps.Clone(m.live)
	return m
}

// before sees a step coming: the one before it is done.
func (m *powerModel) before(step, path string) error {
	m.snapshot(step)
	rel, _ := filepath.Rel(m.dir, path)
	switch step {
	case "sync":
		m.pend = func() {
			f := m.live[rel]
			if f == nil {
				m.t.Errorf("sync of %s, which is not there", rel)
				return
			}
			f.synced, f.isSaved = f.now, true
		}
	case "syncdir":
		m.pend = func() {
			maps.DeleteFunc(m.durable, func(name string, _ *modelFile) bool { return filepath.Dir(name) == rel })
			for name, f := range m.live {
				if filepath.Dir(name) == rel {
					m.durable[name] = f
				}
			}
		}
	}
	return nil
}

// look brings live up to date. Between two calls is one step, so that an inode of
// the same number is the same.
func (m *powerModel) look() {
	known := make(map[uint64]*modelFile)
	for _, f := range m.live {
		known[f.ino] = f
	}
	m.live = make(map[string]*modelFile)
	if _, err := os.Stat(m.dir); err != nil {
		return
	}
	for _, name := range filesBelow(m.t, m.dir) {
		path := filepath.Join(m.dir, name)
		content, err := os.ReadFile(path)
		if err != nil {
			m.t.Error(err)
		}
		ino := inode(m.t, path)
		f := known[ino]
		if f == nil {
			f = &modelFile{ino: ino}
		}
		f.now = content
		m.live[name] = f
	}
}

func (m *powerModel) snapshot(step string) {
	m.look()
	if m.pend != nil {
		m.pend()
		m.pend = nil
	}
	snap := powerSnapshot{step, map[string]map[string][]byte{}}
	take := func(how string, names map[string]*modelFile, content func(f *modelFile) []byte) {
		files := make(map[string][]byte, len(names))
		for name, f := range names {
			files[name] = content(f)
		}
		snap.files[how] = files
	}
	// A file whose name is durable and whose content never was is empty.
	take("least", m.durable, func(f *modelFile) []byte { return f.synced })
	lost := func(to func(f *modelFile) []byte) func(f *modelFile) []byte {
		return func(f *modelFile) []byte {
			if f.isSaved && bytes.Equal(f.now, f.synced) {
				return f.now
			}
			return to(f)
		}
	}
	holes := func(f *modelFile) []byte { return make([]byte, len(f.now)) }
	empty := func(*modelFile) []byte { return nil }
	take("holes", m.live, lost(holes))
	take("empty", m.live, lost(empty))
	for i := range 3 {
		mixed := make(map[string]*modelFile)
		names := maps.Clone(m.durable)
		maps.Copy(names, m.live)
		for _, name := range slices.Sorted(maps.Keys(names)) {
			from := m.live
			if m.rng.IntN(2) == 0 {
				from = m.durable
			}
			if f := from[name]; f != nil {
				mixed[name] = f
			}
		}
		take(fmt.Sprintf("some %d", i), mixed, lost(func(f *modelFile) []byte {
			return [][]byte{f.synced, holes(f), nil, f.now}[m.rng.IntN(4)]
		}))
	}
	m.snapshots = append(m.snapshots, snap)
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}
