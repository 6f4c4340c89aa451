package holder

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpen: a client gets what open(2) returns in the holder, and its errors.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h := start(t, path)
	c := dial(t, path, "n")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	before := openDescriptors(t)
	for range 3 { // on each connection
		fd, err := c.Open(d, "f", unix.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "f")
		text, err := io.ReadAll(f)
		_ = f.Close()
		if string(text) != "content" || err != nil {
			t.Errorf("read %q, %v", text, err)
		}
		fd, err = c.Open(d, "f", unix.O_PATH)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Read(fd, make([]byte, 1)); err != unix.EBADF {
			t.Errorf("reading what was opened with O_PATH: %v", err)
		}
		_ = unix.Close(fd)
		var errno syscall.Errno
		if _, err := c.Open(d, "no such file", unix.O_PATH); !errors.As(err, &errno) || errno != unix.ENOENT || errors.Is(err, ErrLost) {
			t.Errorf("a file that is not there: %v", err)
		}
	}
	// Both ends of two connections, and one of the holder's that blocks for each.
	if n := openDescriptors(t); n > before+3*openConnections {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	h.end()
	if _, err := c.Open(d, "f", unix.O_PATH); !errors.Is(err, ErrLost) {
		t.Errorf("without a holder: %v", err)
	}
	_ = start(t, path)
	if fd, err := c.Open(d, "f", unix.O_PATH); err != nil {
		t.Errorf("with the next holder: %v", err)
	} else {
		_ = unix.Close(fd)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
