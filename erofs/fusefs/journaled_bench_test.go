package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// BenchmarkJournaled compares requests that are kept in a journal with those that are not.
func BenchmarkJournaled(b *testing.B) {
	images.Need(b, "root", os.Getuid() == 0)
	const size = 4 << 20
	tree := b.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "file"), make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	image := images.Build(b, images.NewestMkfs(b), []string{"-Enoinline_data"}, tree)
	for _, journal := range []bool{false, true} {
		fs := New(share.NewDomain("d"))
		fs.NoResend = journal
		var files []*os.File
		for range 3 {
			f, err := os.CreateTemp(b.TempDir(), "kept")
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			files = append(files, f)
		}
		if err := fs.Keep(files[0], files[1], files[2]); err != nil {
			b.Fatal(err)
		}
		m, err := Serve(b.Context(), fs, b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		tree, err := fs.AddTree(joinImage(b, fs.Domain(), "a", true, image))
		if err != nil {
			b.Fatal(err)
		}
		file, err := unix.Open(filepath.Join(m.Dir(), tree.Path(), "file"), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		name := "plain"
		if journal {
			name = "journal"
		}
		b.Run("lookup/"+name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := unix.Access(filepath.Join(m.Dir(), fmt.Sprint("nothing", i%100)), unix.F_OK); err != unix.ENOENT {
					b.Fatal(err)
				}
			}
		})
		b.Run("statfs/"+name, func(b *testing.B) {
			var st unix.Statfs_t
			for b.Loop() {
				if err := unix.Statfs(m.Dir(), &st); err != nil {
					b.Fatal(err)
				}
			}
		})
		for _, length := range []int{blockSize, windowSize, requestSize} {
			b.Run(fmt.Sprintf("read%d/%s", length, name), func(b *testing.B) {
				buf, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = unix.Munmap(buf) }()
				b.SetBytes(int64(length))
				for i := 0; b.Loop(); i++ {
					if n, err := unix.Pread(file, buf, int64(i*length%size)); n != length || err != nil {
						b.Fatal(n, err)
					}
				}
			})
		}
		_ = unix.Close(file)
		if err := m.Unmount(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
