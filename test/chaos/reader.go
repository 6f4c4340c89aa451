package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reader is a process that reads one volume and compares all with the truth, until it is
// told to end or has read enough. It says on stderr what was wrong, and ends with 0 all
// the same: what counts is what it counted.
type reader struct {
	dir     string
	truth   *truth
	control *control
	counts  *counts
	rng     *rand.Rand

	regular []string // with data
	links   []string
	dirs    []string
	xattrs  []string
	source  map[string][]byte

	files []held // open beyond a step
	maps  []mapped
	buf   []byte // page aligned
	said  int
}

type held struct {
	name string
	fd   int
}

type mapped struct {
	name string
	data []byte
}

// maxSaid is how many findings a reader tells of in words.
const maxSaid = 40

// readerMain is main of a reader.
func readerMain(args []string) error {
	flags := flag.NewFlagSet("reader", flag.ContinueOnError)
	dir := flags.String("dir", "", "the mounted volume")
	truthPath := flags.String("truth", "", "what it must show")
	controlPath := flags.String("control", "", "file of the control page")
	countsPath := flags.String("counts", "", "file of the counts")
	limit := flags.Int("limit", 0, "end after so many operations; 0: with a signal")
	seed := flags.Uint64("seed", 1, "of what it does")
	pause := flags.Duration("pause", time.Millisecond, "between operations")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r := &reader{dir: *dir, rng: rand.New(rand.NewPCG(*seed, 7)), source: make(map[string][]byte)}
	var err error
	if r.truth, err = readTruth(*truthPath); err != nil {
		return err
	}
	if r.control, err = mapFile[control](*controlPath, false); err != nil {
		return err
	}
	if r.counts, err = mapFile[counts](*countsPath, false); err != nil {
		return err
	}
	if r.buf, err = unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
		return err
	}
	r.sort()
	debug.SetPanicOnFault(true) // a read error of a mapping is a SIGBUS
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	for n := 0; *limit == 0 || n < *limit; n++ {
		select {
		case <-end:
			return nil
		case <-time.After(*pause):
		}
		r.operation()
	}
	return nil
}

func (r *reader) sort() {
	for name, e := range r.truth.Files {
		switch {
		case e.Mode&unix.S_IFMT == unix.S_IFREG && e.Size > 0:
			r.regular = append(r.regular, name)
			if len(e.Xattrs) > 0 {
				r.xattrs = append(r.xattrs, name)
			}
		case e.Mode&unix.S_IFMT == unix.S_IFLNK:
			r.links = append(r.links, name)
		case e.Mode&unix.S_IFMT == unix.S_IFDIR:
			r.dirs = append(r.dirs, name)
		}
	}
	for _, list := range [][]string{r.regular, r.links, r.dirs, r.xattrs} {
		slices.Sort(list)
	}
}

// operations are what a reader does, the more often the greater the weight.
var operations = []struct {
	weight int
	name   string
	do     func(*reader) error
}{
	{20, "read", (*reader).readWhole},
	{15, "read with O_DIRECT", (*reader).readDirect},
	{10, "read after DONTNEED", (*reader).readDropped},
	{25, "pread", (*reader).readPart},
	{10, "pread of a file that stays open", (*reader).readHeld},
	{8, "mmap", (*reader).readMapped},
	{6, "a mapping that stays", (*reader).readHeldMap},
	{6, "list", (*reader).list},
	{8, "stat", (*reader).stat},
	{4, "readlink", (*reader).readlink},
	{4, "getxattr", (*reader).getxattr},
	{2, "statfs", (*reader).statfs},
	{2, "exec", (*reader).exec},
}

func (r *reader) operation() {
	total := 0
	for _, o := range operations {
		total += o.weight
	}
	n := r.rng.IntN(total)
	for _, o := range operations {
		if n -= o.weight; n >= 0 {
			continue
		}
		lenient := r.control.lenient.Load()
		if lenient != 0 {
			r.letGo()
		}
		err := o.do(r)
		if err == nil {
			return
		}
		var wrong *wrongError
		switch {
		case errors.As(err, &wrong) && (!wrong.mount || lenient|r.control.lenient.Load() == 0):
			r.counts.wrong.Add(1)
		case lenient|r.control.lenient.Load() != 0:
			r.counts.lenient.Add(1)
			r.letGo()
			time.Sleep(20 * time.Millisecond)
			return
		default:
			r.counts.errors.Add(1)
		}
		if r.said++; r.said <= maxSaid {
			fmt.Fprintf(os.Stderr, "%s %s: %s: %v\n", time.Now().Format("15:04:05.000"), r.dir, o.name, err)
		}
		return
	}
}

// letGo closes what is open, of mounts that may be dead.
func (r *reader) letGo() {
	for _, h := range r.files {
		_ = unix.Close(h.fd)
	}
	for _, m := range r.maps {
		_ = unix.Munmap(m.data)
	}
	r.files, r.maps = nil, nil
}

// wrongError says that something is other than the truth.
type wrongError struct {
	text  string
	mount bool // as where nothing is mounted, for a moment while mounts are made anew
}

func (e *wrongError) Error() string { return e.text }

func wrongf(format string, args ...any) error { return &wrongError{text: fmt.Sprintf(format, args...)} }

// step does one thing that may wait for the engine, and counts how long it took.
func (r *reader) step(do func() error) error {
	before, start := r.control.outage.Load(), monotonic()
	r.counts.since.Store(int64(start))
	err := do()
	took := monotonic() - start
	r.counts.since.Store(0)
	r.counts.steps.Add(1)
	after := r.control.outage.Load()
	b := bucket(took)
	r.counts.all[b].Add(1)
	if before%2 == 0 && after != before {
		r.counts.struck[b].Add(1)
	}
	if before%2 == 1 || after != before {
		r.counts.waited[b].Add(1)
	}
	return err
}

func (r *reader) any(list []string) string { return list[r.rng.IntN(len(list))] }

func (r *reader) path(name string) string { return filepath.Join(r.dir, name) }

func (r *reader) open(name string, flags int) (fd int, err error) {
	err = r.step(func() (err error) {
		for {
			if fd, err = unix.Open(r.path(name), unix.O_RDONLY|unix.O_CLOEXEC|flags, 0); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

func (r *reader) pread(name string, fd int, p []byte, at int64) (n int, err error) {
	err = r.step(func() (err error) {
		for {
			if n, err = unix.Pread(fd, p, at); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	if err != nil {
		return 0, &os.PathError{Op: fmt.Sprintf("read at %d", at), Path: name, Err: err}
	}
	return n, nil
}

// readSum reads a file to its end in parts and compares its sum.
func (r *reader) readSum(name string, flags, size int) error {
	fd, err := r.open(name, flags)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if size < 0 {
		size = -size
		_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	}
	h := sha256.New()
	at := int64(0)
	for {
		n, err := r.pread(name, fd, r.buf[:size], at)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		h.Write(r.buf[:n])
		at += int64(n)
	}
	r.counts.bytes.Add(uint64(at))
	if e := r.truth.Files[name]; at != e.Size || hex.EncodeToString(h.Sum(nil)) != e.Sum {
		return wrongf("%s: %d bytes of sum %x, want %d of %s", name, at, h.Sum(nil), e.Size, e.Sum)
	}
	return nil
}

func (r *reader) readWhole() error {
	return r.readSum(r.any(r.regular), 0, 4096<<r.rng.IntN(8))
}

func (r *reader) readDirect() error {
	return r.readSum(r.any(r.regular), unix.O_DIRECT, 65536<<r.rng.IntN(5))
}

func (r *reader) readDropped() error { return r.readSum(r.any(r.regular), 0, -128<<10) }

// want is a part of a file as it is in the tree.
func (r *reader) want(name string, at int64, n int) ([]byte, error) {
	data, ok := r.source[name]
	if !ok {
		f, err := os.Open(filepath.Join(r.truth.Source, name))
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		data, err = unix.Mmap(int(f.Fd()), 0, int(r.truth.Files[name].Size), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		r.source[name] = data
	}
	return data[at:min(at+int64(n), int64(len(data)))], nil
}

// readAt reads a part of an open file and compares it.
func (r *reader) readAt(name string, fd int) error {
	size := r.truth.Files[name].Size
	at, n := r.rng.Int64N(size), 1+r.rng.IntN(200_000)
	want, err := r.want(name, at, n)
	if err != nil {
		return err
	}
	for got := 0; got < len(want); {
		n, err := r.pread(name, fd, r.buf[:len(want)-got], at+int64(got))
		if err != nil {
			return err
		}
		if n == 0 || !bytes.Equal(r.buf[:n], want[got:got+n]) {
			return wrongf("%s: other bytes within %d to %d, or their end", name, at+int64(got), at+int64(got+n))
		}
		got += n
		r.counts.bytes.Add(uint64(n))
	}
	return nil
}

func (r *reader) readPart() error {
	name := r.any(r.regular)
	fd, err := r.open(name, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return r.readAt(name, fd)
}

// maxHeld is how many files and mappings a reader has beyond a step.
const maxHeld = 6

func (r *reader) readHeld() error {
	if len(r.files) < maxHeld {
		name := r.any(r.regular)
		fd, err := r.open(name, 0)
		if err != nil {
			return err
		}
		r.files = append(r.files, held{name, fd})
	}
	i := r.rng.IntN(len(r.files))
	h := r.files[i]
	_ = unix.Fadvise(h.fd, 0, 0, unix.FADV_DONTNEED)
	err := r.readAt(h.name, h.fd)
	if r.rng.IntN(8) == 0 || err != nil {
		_ = unix.Close(h.fd)
		r.files = slices.Delete(r.files, i, i+1)
	}
	return err
}

func (r *reader) mmap(name string) ([]byte, error) {
	fd, err := r.open(name, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	data, err := unix.Mmap(fd, 0, int(r.truth.Files[name].Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: name, Err: err}
	}
	return data, nil
}

// fault copies out of a mapping.
func (r *reader) fault(name string, to, from []byte) error {
	return r.step(func() (err error) {
		defer func() {
			if e := recover(); e != nil {
				err = fmt.Errorf("%s: read of a mapping: %v", name, e)
			}
		}()
		copy(to, from)
		return nil
	})
}

func (r *reader) readMapped() error {
	name := r.any(r.regular)
	data, err := r.mmap(name)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(data) }()
	h := sha256.New()
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 64<<10)
		if err := r.fault(name, r.buf[:n], rest[:n]); err != nil {
			return err
		}
		h.Write(r.buf[:n])
		rest = rest[n:]
	}
	r.counts.bytes.Add(uint64(len(data)))
	if e := r.truth.Files[name]; hex.EncodeToString(h.Sum(nil)) != e.Sum {
		return wrongf("%s: mapped, its sum is %x, want %s", name, h.Sum(nil), e.Sum)
	}
	return nil
}

func (r *reader) readHeldMap() error {
	if len(r.maps) < maxHeld {
		name := r.any(r.regular)
		data, err := r.mmap(name)
		if err != nil {
			return err
		}
		r.maps = append(r.maps, mapped{name, data})
	}
	i := r.rng.IntN(len(r.maps))
	m := r.maps[i]
	at := r.rng.Int64N(int64(len(m.data)))
	n := min(len(m.data)-int(at), 1+r.rng.IntN(100_000))
	want, err := r.want(m.name, at, n)
	if err == nil {
		err = r.fault(m.name, r.buf[:n], m.data[at:at+int64(n)])
	}
	if err == nil && !bytes.Equal(r.buf[:n], want) {
		err = wrongf("%s: mapped, other bytes within %d to %d", m.name, at, at+int64(n))
	}
	r.counts.bytes.Add(uint64(n))
	if r.rng.IntN(8) == 0 || err != nil {
		_ = unix.Munmap(m.data)
		r.maps = slices.Delete(r.maps, i, i+1)
	}
	return err
}

func (r *reader) list() error {
	name := r.any(r.dirs)
	want := r.truth.Files[name]
	fd, err := r.open(name, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	var names []string
	for {
		var some []string
		err := r.step(func() (err error) {
			some, err = f.Readdirnames(200)
			return err
		})
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		names = append(names, some...)
	}
	slices.Sort(names)
	if !slices.Equal(names, want.Names) {
		return &wrongError{
			text:  fmt.Sprintf("%q has %d names, %.200q; want %d, %.200q", name, len(names), names, len(want.Names), want.Names),
			mount: name == "" && len(names) == 0,
		}
	}
	for range min(len(names), 20) {
		if err := r.statOne(filepath.Join(name, r.any(names))); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) statOne(name string) error {
	var got *entry
	err := r.step(func() (err error) {
		got, err = look(r.path(name))
		return err
	})
	if err != nil {
		return err
	}
	if want := r.truth.Files[name]; got.Mode != want.Mode || got.UID != want.UID || got.Size != want.Size || got.Mtime != want.Mtime {
		return wrongf("%s: stat says %+v, want %+v", name, *got, *want)
	}
	return nil
}

func (r *reader) stat() error { return r.statOne(r.any(r.regular)) }

func (r *reader) readlink() error {
	name := r.any(r.links)
	var got string
	err := r.step(func() (err error) {
		got, err = os.Readlink(r.path(name))
		return err
	})
	if err != nil {
		return err
	}
	if want := r.truth.Files[name].Link; got != want {
		return wrongf("%s: leads to %q, want %q", name, got, want)
	}
	return nil
}

func (r *reader) getxattr() error {
	name := r.any(r.xattrs)
	value := make([]byte, 256)
	for attr, want := range r.truth.Files[name].Xattrs {
		n := 0
		err := r.step(func() (err error) {
			n, err = unix.Lgetxattr(r.path(name), attr, value)
			return err
		})
		if err != nil {
			return &os.PathError{Op: "getxattr " + attr, Path: name, Err: err}
		}
		if string(value[:n]) != want {
			return wrongf("%s: %s is %q, want %q", name, attr, value[:n], want)
		}
	}
	return nil
}

func (r *reader) statfs() error {
	var st unix.Statfs_t
	err := r.step(func() error {
		for {
			if err := unix.Statfs(r.dir, &st); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	if err != nil {
		return &os.PathError{Op: "statfs", Path: r.dir, Err: err}
	}
	if st.Bsize == 0 || st.Bavail != 0 {
		return &wrongError{text: fmt.Sprintf("statfs says %+v", st), mount: true}
	}
	return nil
}

func (r *reader) exec() error {
	name := r.any(r.truth.Exec)
	var out []byte
	err := r.step(func() (err error) {
		out, err = exec.Command(r.path(name)).Output()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if string(out) != execSays {
		return wrongf("%s says %q", name, out)
	}
	return nil
}
