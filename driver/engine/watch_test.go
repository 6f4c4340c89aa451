package engine

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
	"github.com/erofs-csi/erofs-csi/test/registry"
)

// readDirect reads a page of a file, which is one request.
func readDirect(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 2*4096)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))) & 4095
	_, err = unix.Pread(fd, buf[skip:skip+4096], 0)
	return err
}

// said are the lines of an engine's log with a message.
func said(log, message string) (lines []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"`+message+`"`) {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestLongReadIsToldOf: a read that waits for a registry for long is in the log, once,
// with what it is of, and others are not.
func TestLongReadIsToldOf(t *testing.T) {
	tree := manyFiles(t, 24)
	reg := registry.New(t, images.Build(t, images.NewestMkfs(t), nil, tree))
	ch := startChild(t, childConfig{
		Mounts: []childMount{{Domain: "x", Volume: "v", Image: reg.Ref, Incomplete: true}},
		Long:   300 * time.Millisecond, Each: 20 * time.Millisecond,
	})
	dir := ch.Fronts[0].Path
	if err := readDirect(dir + "/file01"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- readDirect(dir + "/file09") }() // what the registry keeps back
	select {
	case err := <-done:
		t.Fatalf("the read did not wait: %v", err)
	case <-time.After(1500 * time.Millisecond):
	}
	reg.GoOn()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ch.stop(t)
	log := ch.stderr.String()
	lines := said(log, "A read waits for long: where its image is does not answer")
	if len(lines) != 1 || !regexp.MustCompile(`domain="x" age="[0-9.]+m?s" file="/.+" bytes=1048576 images=\["`+regexp.QuoteMeta(reg.Ref)+`@sha256:`).MatchString(lines[0]) {
		t.Errorf("said of a read that waited: %q\n%s", lines, log)
	}
	if lines := said(log, "A read failed"); len(lines) != 0 {
		t.Errorf("said: %q", lines)
	}
}

// TestFailedReadIsToldOf: of reads that fail the log says why, but not of each of many.
func TestFailedReadIsToldOf(t *testing.T) {
	tree := manyFiles(t, 1)
	image := images.Build(t, images.NewestMkfs(t), nil, tree)
	ch := startChild(t, childConfig{
		Mounts: []childMount{{Domain: "x", Volume: "v", Image: image}},
		Long:   time.Minute, Each: time.Minute,
	})
	path := filepath.Join(ch.Fronts[0].Path, "file00")
	if err := readDirect(path); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := os.Chtimes(image, now, now); err != nil { // as one that was written to
		t.Fatal(err)
	}
	for range 5 * maxFailed {
		if err := readDirect(path); err != unix.EIO {
			t.Fatalf("read of an image that changed: %v, want EIO", err)
		}
	}
	ch.stop(t)
	log := ch.stderr.String()
	lines := said(log, "A read failed")
	if n := len(lines); n == 0 || n > maxFailed {
		t.Fatalf("%d reads are told of, want 1 to %d: %s", n, maxFailed, log)
	}
	for _, part := range []string{"image file changed while in use", `domain="x"`, "offset=0 size=4096", `file="/`, `images=["` + image + `"]`} {
		if !strings.Contains(lines[0], part) {
			t.Errorf("said of a read that failed: %s; want %q in it", lines[0], part)
		}
	}
}
