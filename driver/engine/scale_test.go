package engine

import (
	"archive/tar"
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// scaleEnv makes TestScale one of the size that the project promises, for instance
//
//	EROFS_CSI_SCALE=50x20000x10 go test ./driver/engine -run TestScale -v -timeout 2h
//
// for 50 images of 20,000 files in 10 domains, each image in four of them. The files
// of each image are read in one of its domains then. It takes a quarter of an hour,
// 4 GB of TMPDIR and 4 GB of memory, most of it the kernel's.
const scaleEnv = "EROFS_CSI_SCALE"

// scaleSize is what TestScale makes.
type scaleSize struct {
	images, files, domains int
}

// buffersMayTake is what fusefs keeps of buffers for large replies, which it gives
// back when nothing reads.
const buffersMayTake = 8 << 20

// scaleRepeat is in how many domains each image is.
const scaleRepeat = 4

func (s scaleSize) mounts(list []string) (mounts []childMount) {
	for v := range s.images * scaleRepeat {
		image := v % s.images
		mounts = append(mounts, childMount{
			Domain: fmt.Sprint("domain-", (image+v/s.images)%s.domains),
			Volume: fmt.Sprint("volume-", v), Image: list[image],
		})
	}
	return mounts
}

// What many volumes take: process memory, goroutines, descriptors and mounts, none of
// which grows with the files until the kernel asks for them, and all of which is given
// back in the end. With the small size that a test may take the bounds are on what a
// file and an image cost.
func TestScale(t *testing.T) {
	size := scaleSize{images: 10, files: 600, domains: 5}
	full := os.Getenv(scaleEnv)
	if full != "" {
		if _, err := fmt.Sscanf(full, "%dx%dx%d", &size.images, &size.files, &size.domains); err != nil {
			t.Fatalf("%s=%q: want IMAGESxFILESxDOMAINS", scaleEnv, full)
		}
	}
	list := scaleImages(t, size)
	cache := t.TempDir()
	fronts := []string{FrontOverlay, FrontTree}
	if f := os.Getenv(scaleEnv + "_FRONT"); f != "" {
		fronts = []string{f}
	}
	for _, front := range fronts {
		t.Run(front, func(t *testing.T) {
			state := stateDir(t)
			ch := startChild(t, childConfig{StateDir: state, CacheDir: cache, Front: front, Mounts: size.mounts(list), Lazy: true})
			pid := strconv.Itoa(ch.cmd.Process.Pid)
			start, startMounts := ch.stats(t), len(mountsBelow(t, state))
			log := func(what string, args ...any) {
				t.Helper()
				t.Logf("%-40s "+what, append([]any{fmt.Sprintf("%s %dx%dx%d:", front, size.images, size.files, size.domains)}, args...)...)
			}

			slab := slabBytes(t)
			var took []time.Duration
			var peak int64
			for n := range ch.Fronts {
				began := time.Now()
				ch.toggle(t, n)
				took = append(took, time.Since(began))
				ch.mustFront(t, n, front)
				peak = max(peak, statusField(pid, "RssAnon"))
			}
			mounted := ch.stats(t)
			mountedFiles := size.images * size.files * scaleRepeat
			log("start of %d volumes %v, of the first and last tenth %v and %v", len(took), sum(took), sum(took[:len(took)/10]), sum(took[len(took)*9/10:]))
			log("mounted: %.1f MB anonymous (peak %.1f), heap %.1f MB, %d goroutines, %d descriptors, %d mounts", mb(mounted.Anon), mb(peak), mb(int64(mounted.Heap)), mounted.Goroutines, mounted.Descriptors, len(mountsBelow(t, state)))
			log("kernel slab of the mounts: %.0f bytes a file", float64(slabBytes(t)-slab)/float64(mountedFiles))
			cpu := cpuTime(t, pid)
			idle := 2 * time.Second
			if full != "" {
				idle = 10 * time.Second
			}
			time.Sleep(idle)
			used := cpuTime(t, pid) - cpu
			log("CPU in %v of doing nothing: %v", idle, used)
			if used > idle/50 {
				t.Errorf("the engine used %v of CPU in %v of doing nothing", used, idle)
			}

			slab = slabBytes(t)
			began := time.Now()
			readOf := ch.Fronts
			if full != "" {
				readOf = readOf[:size.images] // each image once: what the kernel knows is dear
			}
			readFiles := len(readOf) * size.files
			files := readFronts(t, readOf)
			log("read %d files in %v", files, time.Since(began))
			if files != readFiles {
				t.Errorf("%d files were read, want %d", files, readFiles)
			}
			read := ch.stats(t)
			kernel := slabBytes(t) - slab
			log("all read: %.1f MB anonymous, heap %.1f MB, %d inodes known by content, kernel slab %.0f bytes a file", mb(read.Anon), mb(int64(read.Heap)), read.KnownInodes, float64(kernel)/float64(readFiles))
			began = time.Now()
			status, err := ReadStatus(t.Context(), state)
			if err != nil || len(status) != 1 || len(status[0].Domains) != size.domains {
				t.Fatalf("status: %v", err)
			}
			log("status took %v", time.Since(began))
			for _, d := range status[0].Domains {
				if full == "" {
					checkScaleStatus(t, size, d)
				}
			}
			afterStatus := ch.stats(t)
			log("after it: %.1f MB anonymous, heap %.1f MB", mb(afterStatus.Anon), mb(int64(afterStatus.Heap)))

			took = took[:0]
			for n := range ch.Fronts {
				began := time.Now()
				ch.toggle(t, n)
				took = append(took, time.Since(began))
			}
			log("stop of %d volumes %v, of the first and last tenth %v and %v", len(took), sum(took), sum(took[:len(took)/10]), sum(took[len(took)*9/10:]))
			var end childStats
			for range 100 { // sessions that ended let go of their goroutines in their own time
				if end = ch.stats(t); end.Goroutines <= start.Goroutines && end.Descriptors <= start.Descriptors {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			log("stopped: %.1f MB anonymous, heap %.1f MB, %d goroutines, %d descriptors", mb(end.Anon), mb(int64(end.Heap)), end.Goroutines, end.Descriptors)

			if end.Goroutines > start.Goroutines || end.Descriptors > start.Descriptors || len(mountsBelow(t, state)) != startMounts || end.KnownInodes != 0 {
				t.Errorf("%+v and %d mounts at the end, %+v and %d at the start", end, len(mountsBelow(t, state)), start, startMounts)
			}
			// Metadata is kept within a budget, whatever the images; the rest is by volume.
			bound := start.Anon + metadataCache + int64(len(ch.Fronts))*64<<10 + 4<<20
			if mounted.Anon > bound {
				t.Errorf("%.1f MB of memory with all mounted, want at most %.1f", mb(mounted.Anon), mb(bound))
			}
			// What was read costs replies' buffers, and the inodes that the kernel knows.
			perInode := map[string]int64{FrontOverlay: 80, FrontTree: 420}[front]
			bound += buffersMayTake + int64(read.KnownInodes)*perInode
			if read.Anon > bound {
				t.Errorf("%.1f MB of memory with all read, want at most %.1f, which is %d bytes for each of %d inodes", mb(read.Anon), mb(bound), perInode, read.KnownInodes)
			}
			// The runtime keeps some of its own tables of what was once in use.
			if end.Anon > start.Anon+4<<20+buffersMayTake+read.Anon/16 || end.Heap > start.Heap+2<<20 {
				t.Errorf("%.1f MB of memory and %.1f of heap are left, %.1f and %.1f at the start", mb(end.Anon), mb(int64(end.Heap)), mb(start.Anon), mb(int64(start.Heap)))
			}
			if full != "" && peak > 64<<20 {
				t.Errorf("%.1f MB of memory at the most while mounting, want at most 67.1", mb(peak))
			}
		})
	}
}

// checkScaleStatus checks what is known of the images that scaleImages makes.
func checkScaleStatus(t *testing.T, size scaleSize, d DomainStatus) {
	t.Helper()
	n := size.images * scaleRepeat / size.domains
	if len(d.Images) != n || d.BytesResident <= 0 || d.BytesSaved <= 0 {
		t.Fatalf("domain %s: %d images, %d bytes resident, %d saved; want %d images", d.Name, len(d.Images), d.BytesResident, d.BytesSaved, n)
	}
	for _, im := range d.Images {
		if im.Files != size.files || im.SharedFiles != (size.files+1)/2 || im.BytesResident == 0 || im.BytesAlone == 0 || im.BytesAlone >= im.BytesResident {
			t.Errorf("domain %s: image %+v", d.Name, im)
		}
	}
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

func sum(list []time.Duration) (total time.Duration) {
	for _, d := range list {
		total += d
	}
	return total.Round(time.Millisecond)
}

// scaleImages makes images of small files. Every other file has the content of the one
// of its number in every image.
func scaleImages(t *testing.T, size scaleSize) (list []string) {
	t.Helper()
	mkfs := images.NewestMkfs(t)
	dir := t.TempDir()
	for n := range size.images {
		path := filepath.Join(dir, fmt.Sprintf("%d.erofs", n))
		if mkfs.AtLeast(1, 7) {
			r, w := io.Pipe()
			go func() { _ = w.CloseWithError(scaleTar(w, size, n)) }()
			cmd := exec.Command(mkfs.Path, "--quiet", "--tar=f", path, "/dev/stdin")
			cmd.Stdin = r
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("mkfs.erofs: %v\n%s", err, out)
			}
		} else {
			tree := t.TempDir()
			for i := range size.files {
				file := filepath.Join(tree, scaleName(i))
				if i%100 == 0 {
					if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(file, scaleData(n, i), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(file, time.Unix(1, 0), time.Unix(1, 0)); err != nil { // trees share nothing else
					t.Fatal(err)
				}
			}
			if err := os.Rename(images.Build(t, mkfs, nil, tree), path); err != nil {
				t.Fatal(err)
			}
			_ = os.RemoveAll(tree)
		}
		list = append(list, path)
	}
	return list
}

func scaleName(file int) string { return fmt.Sprintf("dir%04d/file-%d", file/100, file) }

func scaleData(image, file int) []byte {
	head := binary.LittleEndian.AppendUint32(nil, uint32(file))
	if file%2 != 0 {
		head = binary.LittleEndian.AppendUint32(head, uint32(image+1))
	}
	data := make([]byte, 300+file*7919%2000)
	copy(data, head)
	return data
}

// scaleTar writes an image's files as a tar archive.
func scaleTar(w io.Writer, size scaleSize, image int) error {
	buffered := bufio.NewWriterSize(w, 1<<20)
	out := tar.NewWriter(buffered)
	for i := range size.files {
		if i%100 == 0 {
			if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: filepath.Dir(scaleName(i)) + "/", Mode: 0o755}); err != nil {
				return err
			}
		}
		data := scaleData(image, i)
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: scaleName(i), Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

// readFronts reads a byte of every regular file of the fronts, and returns how many
// there were.
func readFronts(t *testing.T, fronts []childFront) int {
	t.Helper()
	var files atomic.Int64
	work := make(chan string)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var b [1]byte
			for path := range work {
				fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Errorf("open %s: %v", path, err)
					continue
				}
				if n, err := unix.Pread(fd, b[:], 4); n != 1 || err != nil {
					t.Errorf("read %s: %d, %v", path, n, err)
				}
				_ = unix.Close(fd)
				files.Add(1)
			}
		})
	}
	for _, f := range fronts {
		err := filepath.WalkDir(f.Path, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				work <- path
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	close(work)
	wg.Wait()
	return int(files.Load())
}

// slabBytes is the kernel's slab memory.
func slabBytes(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "Slab: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("no Slab in /proc/meminfo")
	return 0
}

// cpuTime is what a process has used, to 10 ms.
func cpuTime(t *testing.T, pid string) time.Duration {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}
