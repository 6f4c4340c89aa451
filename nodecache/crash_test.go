package nodecache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

// scenario opens a store, pulls ref and writes a sidecar twice.
func scenario(dir, ref string, d disk) error {
	s, err := open(Config{Dir: dir, ReserveBytes: -1}, d)
	if err != nil {
		return err
	}
	s.retry = quick
	img, err := s.Acquire(context.Background(), ref, AcquireOptions{})
	if err == nil {
		for _, text := range []string{"old", "new"} {
			err = errors.Join(err, img.WriteSidecar("index", func(f *os.File) error {
				_, err := f.WriteString(text)
				return err
			}))
		}
		img.Release()
	}
	return errors.Join(err, s.Close())
}

// wantWhole opens the store as it was left and requires that what it serves is
// complete, that nothing half done is left, and that pulling then succeeds.
// complete says that the pull had returned before.
func wantWhole(t *testing.T, dir string, p pushed, complete bool) {
	t.Helper()
	s, err := Open(Config{Dir: dir, ReserveBytes: -1})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	s.retry = quick
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	allowed := append(filesOf(t, p), "blobs/sha256/"+p.blob.Encoded()+".index")
	for _, name := range filesBelow(t, dir) {
		if !slices.Contains(allowed, name) {
			t.Errorf("%s was left behind", name)
		}
	}
	check := func(policy PullPolicy) (err error) {
		img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: policy})
		if err != nil {
			return err
		}
		defer img.Release()
		wantContent(t, img.Blob(), p.content)
		text, err := os.ReadFile(img.SidecarPath("index"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && !slices.Contains([]string{"old", "new"}, string(text)) {
			t.Errorf("sidecar %q, %v", text, err)
		}
		if complete && string(text) != "new" {
			t.Errorf("the sidecar is %q", text)
		}
		return nil
	}
	if err := check(Never); err != nil {
		wantError(t, err, ErrNotFound)
		if complete {
			t.Errorf("what was pulled is lost: %v", err)
		}
	}
	if err := check(IfNotPresent); err != nil {
		t.Errorf("pull afterwards: %v", err)
	}
}

// TestOrder states the order of steps on which all else stands.
func TestOrder(t *testing.T) {
	p := pushImage(t, 1, 1<<20+5)
	dir := t.TempDir()
	var c steps
	if err := scenario(dir, p.ref, c.disk(dir)); err != nil {
		t.Fatal(err)
	}
	blob := "blobs/sha256/" + p.blob.Encoded()
	refs := filesOf(t, p)[1:]
	want := []string{
		"syncdir blobs", "syncdir .", "syncdir ..",
		"create tmp/1", "allocate tmp/1", "write tmp/1", "write tmp/1", "sync tmp/1", "rename " + blob, "syncdir blobs/sha256",
		"create tmp/2", "write tmp/2", "sync tmp/2", "rename " + refs[1], "syncdir refs",
		"create tmp/3", "write tmp/3", "sync tmp/3", "rename " + refs[0], "syncdir refs",
		"create tmp/4", "sync tmp/4", "rename " + blob + ".index", "syncdir blobs/sha256",
		"create tmp/5", "sync tmp/5", "rename " + blob + ".index", "syncdir blobs/sha256",
	}
	if !slices.Equal(c.log, want) {
		t.Errorf("steps:\n got %q\nwant %q", c.log, want)
	}
}

const crashEnv = "NODECACHE_TEST_CRASH"

// crashChild runs the scenario and kills itself at a step.
func crashChild() {
	arg := strings.SplitN(os.Getenv(crashEnv), " ", 3)
	at, err := strconv.Atoi(arg[0])
	if err != nil {
		os.Exit(3)
	}
	c := steps{stop: func(n int) error {
		if n == at {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return nil
	}}
	if err := scenario(arg[1], arg[2], c.disk(arg[1])); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(4)
	}
	os.Exit(0)
}

// TestKilled kills a process by SIGKILL before each of its steps.
func TestKilled(t *testing.T) {
	p := pushImage(t, 1, 1<<20+5)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for at := 1; ; at++ {
		dir := filepath.Join(t.TempDir(), "store")
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %s", crashEnv, at, dir, p.ref))
		out, err := cmd.CombinedOutput()
		if err == nil {
			if at < 20 {
				t.Fatalf("only %d steps", at-1)
			}
			wantWhole(t, dir, p, true)
			return
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() == false {
			t.Fatalf("step %d: %v\n%s", at, err, out)
		}
		wantWhole(t, dir, p, false)
		if t.Failed() {
			t.Fatalf("killed before step %d", at)
		}
	}
}

// TestStepFails has each step fail once. The store goes on afterwards.
func TestStepFails(t *testing.T) {
	p := pushImage(t, 1, 1<<20+5)
	for _, errno := range []error{unix.EIO, unix.ENOSPC} {
		for at := 1; ; at++ {
			dir := t.TempDir()
			var failed string
			var c steps
			c.stop = func(n int) error {
				if n == at {
					failed = c.log[n-1]
					return errno
				}
				return nil
			}
			var err error
			noLeaks(t, func(*testing.T) { err = scenario(dir, p.ref, c.disk(dir)) })
			if failed == "" {
				if at < 20 || err != nil {
					t.Fatalf("only %d steps, %v", at-1, err)
				}
				break
			}
			if failed == "syncdir .." {
				if err != nil {
					t.Errorf("%s: %v", failed, err)
				}
			} else if !errors.Is(err, errno) {
				t.Errorf("%s: error %v, want %v", failed, err, errno)
			} else if at > 3 && errors.Is(err, ErrNoSpace) != errors.Is(errno, unix.ENOSPC) {
				t.Errorf("%s: error %v", failed, err)
			}
			if names, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(names) != 0 {
				t.Errorf("%s: %q was left behind", failed, names)
			}
			wantWhole(t, dir, p, false)
		}
	}
}

// TestPowerCut replays the steps on a model of a disk that keeps as little as
// POSIX lets it: at each step it takes the directory as it would come back in
// three ways, and opens that.
//
//   - nothing that was not synced survives, names included;
//   - all names survive, but of files that were not synced only the length;
//   - all names survive, and files that were not synced are empty.
func TestPowerCut(t *testing.T) {
	p := pushImage(t, 1, 1<<20+5)
	dir := t.TempDir()
	model := newPowerModel(t, dir)
	if err := scenario(dir, p.ref, disk{before: model.before}); err != nil {
		t.Fatal(err)
	}
	model.snapshot("the end")
	for i, snap := range model.snapshots {
		for how, dir := range snap.dirs {
			t.Run(fmt.Sprintf("%d %s/%s", i, snap.step, how), func(t *testing.T) {
				wantWhole(t, dir, p, i == len(model.snapshots)-1)
			})
		}
	}
}

type powerModel struct {
	t    *testing.T
	dir  string
	pend func() // what the step under way makes durable, once it is done
	// synced files by inode; durable names with the inode they mean.
	synced    map[uint64]bool
	durable   map[string]uint64
	snapshots []powerSnapshot
}

type powerSnapshot struct {
	step string
	dirs map[string]string
}

func newPowerModel(t *testing.T, dir string) *powerModel {
	return &powerModel{t: t, dir: dir, synced: map[uint64]bool{}, durable: map[string]uint64{}}
}

// before sees a step coming: the one before it is done.
func (m *powerModel) before(step, path string) error {
	m.snapshot(step)
	switch step {
	case "sync":
		m.pend = func() { m.synced[inode(m.t, path)] = true }
	case "write":
		m.pend = func() { delete(m.synced, inode(m.t, path)) }
	case "syncdir":
		m.pend = func() {
			for name := range m.durable {
				if filepath.Dir(name) == path {
					delete(m.durable, name)
				}
			}
			entries, err := os.ReadDir(path)
			if err != nil {
				m.t.Error(err)
			}
			for _, e := range entries {
				if e.Type().IsRegular() {
					name := filepath.Join(path, e.Name())
					m.durable[name] = inode(m.t, name)
				}
			}
		}
	}
	return nil
}

func (m *powerModel) snapshot(step string) {
	if m.pend != nil {
		m.pend()
		m.pend = nil
	}
	snap := powerSnapshot{step, map[string]string{}}
	for _, how := range []string{"least", "holes", "empty"} {
		to := m.t.TempDir()
		snap.dirs[how] = to
		// Synced bytes whose only name is an older one that was renamed over
		// (a replaced sidecar) are gone from the live tree: skip them.
		for _, name := range filesBelow(m.t, m.dir) {
			from := filepath.Join(m.dir, name)
			ino := inode(m.t, from)
			if how == "least" && (m.durable[from] != ino || !m.synced[ino]) {
				continue
			}
			content, err := os.ReadFile(from)
			if err != nil {
				m.t.Fatal(err)
			}
			if !m.synced[ino] {
				content = bytes.Repeat([]byte{0}, map[string]int{"holes": len(content), "empty": 0}[how])
			}
			writeFile(m.t, filepath.Join(to, name), content)
		}
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
