package fusefs

import (
	"reflect"
	"sync"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestPrefault: the buffers that a server reads requests into are in memory from the
// start, by the kernel's word.
func TestPrefault(t *testing.T) {
	var server fuse.Server
	if err := prefault(&server); err != errNoPool {
		t.Errorf("without an allocator: %v", err)
	}
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(buf) }()
	_ = unix.Madvise(buf, unix.MADV_NOHUGEPAGE)
	pool := (*sync.Pool)(unsafe.Pointer(reflect.ValueOf(&server).Elem().FieldByName("readPool").UnsafeAddr()))
	pool.New = func() any { return buf }
	if err := prefault(&server); err != nil {
		t.Fatal(err)
	}
	pool.New()
	resident := make([]byte, len(buf)/4096)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), uintptr(unsafe.Pointer(&resident[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for i, is := range resident {
		if want := i < prefaulted/4096; want != (is&1 != 0) {
			t.Errorf("page %d in memory: %v, want %v", i, !want, want)
		}
	}
}
