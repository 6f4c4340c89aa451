package fusefs

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/apart"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// childEnv makes the test binary serve a passthrough tree of the image at childEnv,
// whose content can't be looked up, in directories below the current one.
const childEnv = "EROFS_CSI_FUSEFS_CHILD"

// stuckFS never answers a lookup in its root, nor statfs.
type stuckFS struct{ *FS }

func (stuckFS) Lookup(<-chan struct{}, *fuse.InHeader, string, *fuse.EntryOut) fuse.Status {
	_, _ = os.Stdout.WriteString("asked\n")
	select {}
}

func (stuckFS) StatFs(<-chan struct{}, *fuse.InHeader, *fuse.StatfsOut) fuse.Status {
	_, _ = os.Stdout.WriteString("asked\n")
	select {}
}

// apartEnv has the child ask its own content mount for its size.
const apartEnv = "EROFS_CSI_FUSEFS_APART"

// A process that is killed while it waits for its own content mount ends, and whoever
// waits for it gets an error.
func TestKilledWhileItOpensItsOwnContent(t *testing.T) { killWhileItAsks(t, false) }

// The same for a system call that apart.Run makes.
func TestKilledWhileApart(t *testing.T) { killWhileItAsks(t, true) }

func killWhileItAsks(t *testing.T, itself bool) {
	t.Helper()
	if tree := os.Getenv(childEnv); tree != "" {
		serveStuck(t, tree)
	}
	images.Need(t, "root", os.Getuid() == 0)
	tree, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"content", "front"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, name), unix.MNT_DETACH) })
	}
	child := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), childEnv+"="+tree)
	if itself {
		child.Env = append(child.Env, apartEnv+"=1")
	}
	child.Dir, child.Stderr = dir, os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	wait := func(word string) bool {
		for lines.Scan() {
			if lines.Text() == word {
				return true
			}
		}
		return false
	}
	if !wait("ready") {
		if err := child.Wait(); err != nil {
			t.Fatal(err)
		}
		return // it has said that this kernel has no passthrough
	}
	opened := make(chan error, 1)
	go func() {
		if itself {
			opened <- unix.Statfs(filepath.Join(dir, "content"), new(unix.Statfs_t))
			return
		}
		fd, err := unix.Open(filepath.Join(dir, "front", "1", "file"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		opened <- err
	}()
	if !wait("asked") {
		t.Fatal("the content mount was not asked")
	}
	_ = child.Process.Kill()
	ended := make(chan struct{})
	go func() { _ = child.Wait(); close(ended) }()
	for range 2 {
		select {
		case <-ended:
			ended = nil
		case err := <-opened:
			if err != unix.ENOTCONN && err != unix.ECONNABORTED {
				t.Errorf("who else asked got %v, want ENOTCONN", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the killed process hangs, and its readers with it")
		}
	}
}

func serveStuck(t *testing.T, tree string) {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	fs := New(share.NewDomain("d"))
	m := joinTree(t, fs.Domain(), "a", true, tree)
	content, err := mountAndServe(t.Context(), stuckFS{fs}, filepath.Join(dir, "content"), contentOptions(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv(apartEnv) != "" {
		go func() {
			_ = apart.Run(func() error { return unix.Statfs(content.Dir(), new(unix.Statfs_t)) })
		}()
		_, _ = os.Stdout.WriteString("ready\n")
		select {}
	}
	p := NewPassthrough()
	if _, err := ServePassthrough(t.Context(), p, filepath.Join(dir, "front")); errors.Is(err, ErrNoPassthrough) {
		if err := content.Unmount(t.Context()); err != nil {
			t.Fatal(err)
		}
		os.Exit(0)
	} else if err != nil {
		t.Fatal(err)
	}
	if _, err := p.AddTree(m, content.Dir()); err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("ready\n")
	select {}
}
