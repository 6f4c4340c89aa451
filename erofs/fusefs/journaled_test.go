package fusefs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// journalEnv makes the test binary serve or resume a content mount: journalChild in JSON.
const journalEnv = "EROFS_CSI_FUSEFS_JOURNAL"

// journalChild is what a child is to do. Its files are those of Keep, and behind them
// the channel of the session, if there is one.
type journalChild struct {
	Image, Dir string
	Resume     bool
	State      State
	Load       bool // else requests wait for ever
}

// journalReport is what it answers when it serves.
type journalReport struct {
	Channel int
	State   State
}

// journalEnd is what it answers when stdin has ended and with it the mount.
type journalEnd struct {
	Lost int64
	Err  string
}

func runJournalChild(t *testing.T, config string) {
	t.Helper()
	var c journalChild
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	lostCheck = 10 * time.Millisecond
	fs := New(share.NewDomain("d"))
	fs.NoResend = true
	var files []*os.File
	for range 3 {
		files = append(files, os.NewFile(uintptr(3+len(files)), "kept"))
	}
	var m *Mount
	var err error
	if c.Resume {
		if err = fs.Recall(files[0], files[1], files[2]); err == nil {
			m, err = Resume(fs, c.Dir, os.NewFile(6, "/dev/fuse"), c.State)
		}
	} else {
		if err = fs.Keep(files[0], files[1], files[2]); err == nil {
			m, err = Serve(t.Context(), fs, c.Dir)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	member := joinImage(t, fs.Domain(), "a", true, c.Image)
	if c.Resume {
		err = fs.RestoreTree(member, 1)
	} else {
		_, err = fs.AddTree(member)
	}
	if err == nil && c.Load {
		_, err = fs.Load()
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(journalReport{Channel: int(m.Channel().Fd()), State: m.State()})
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	var end journalEnd
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := m.Unmount(ctx); err != nil {
		end.Err = err.Error()
	}
	end.Lost = Lost()
	_ = json.NewEncoder(os.Stdout).Encode(end)
	os.Exit(0)
}

// journalSession is a session whose servers are killed.
type journalSession struct {
	image, dir string
	kept       []*os.File
	open       []int // descriptors of its files
	channel    *os.File
	state      State

	cmd    *exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
}

func (s *journalSession) start(t *testing.T, load bool) {
	t.Helper()
	config, err := json.Marshal(journalChild{Image: s.image, Dir: s.dir, Resume: s.channel != nil, State: s.state, Load: load})
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(t.Name(), "/")
	s.cmd = exec.Command(os.Args[0], "-test.run", "^"+name+"$")
	s.cmd.Env = append(os.Environ(), journalEnv+"="+string(config))
	s.cmd.Stderr = os.Stderr
	s.cmd.ExtraFiles = s.kept
	if s.channel != nil {
		s.cmd.ExtraFiles = append(slices.Clone(s.kept), s.channel)
	}
	s.stdin, err = s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stdout = bufio.NewReader(out)
	var report journalReport
	s.answer(t, &report)
	if s.channel == nil {
		s.state = report.State
		pidfd, err := unix.PidfdOpen(s.cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(pidfd) }()
		fd, err := unix.PidfdGetfd(pidfd, report.Channel, 0)
		if err != nil {
			t.Fatalf("descriptor %d of the server: %v", report.Channel, err)
		}
		s.channel = os.NewFile(uintptr(fd), "/dev/fuse")
	}
}

func (s *journalSession) answer(t *testing.T, v any) {
	t.Helper()
	line, err := s.stdout.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, v)
	}
	if err != nil {
		rest, _ := io.ReadAll(s.stdout)
		t.Fatalf("a server: %v: %s%s", err, line, rest)
	}
}

func (s *journalSession) kill(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait()
}

// end unmounts in order.
func (s *journalSession) end(t *testing.T) (end journalEnd) {
	t.Helper()
	s.close()
	_ = s.stdin.Close()
	s.answer(t, &end)
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
	return end
}

func (s *journalSession) close() {
	if s.channel != nil {
		_ = s.channel.Close()
	}
	for _, fd := range s.open {
		_ = unix.Close(fd)
	}
	s.open = nil
}

// inFlight waits until n requests are in the journal, or some more for what the kernel
// reads ahead, and no others come.
func (s *journalSession) inFlight(t *testing.T, n int) {
	t.Helper()
	for start, last := time.Now(), -1; ; time.Sleep(50 * time.Millisecond) {
		j, used, err := openJournal(s.kept[2])
		if err == nil {
			err = j.close()
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(used) == last && (last == n || n > 0 && last > n) {
			return
		}
		last = len(used)
		if time.Since(start) > 20*time.Second {
			t.Fatalf("%d requests are in flight, want %d", len(used), n)
		}
	}
}

// startJournalSession serves a small tree, and aborts its connection after the test,
// which must not be left with threads that nobody can kill.
func startJournalSession(t *testing.T) *journalSession {
	t.Helper()
	images.Need(t, "root", os.Getuid() == 0)
	s, tree := &journalSession{dir: t.TempDir()}, t.TempDir()
	for i := range 4 {
		path := filepath.Join(tree, "dir", fmt.Sprint(i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, journalData(i), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("dir/1", filepath.Join(tree, "link")), unix.Setxattr(filepath.Join(tree, "dir"), "user.a", []byte("value"), 0)); err != nil {
		t.Fatal(err)
	}
	s.image = images.Build(t, images.NewestMkfs(t), nil, tree)
	for _, name := range []string{"inodes", "nodes", "requests"} {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), name)
		t.Cleanup(func() { _ = f.Close() })
		s.kept = append(s.kept, f)
	}
	s.start(t, false)
	// The first close of a file is a request. Every child that is started here closes
	// what is open here.
	if _, err := os.ReadFile(filepath.Join(s.dir, Tree(1).Path(), "dir/3")); err != nil {
		t.Fatal(err)
	}
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(s.dir))
	if err != nil || len(infos) != 1 {
		t.Fatalf("%d mounts at %s, %v", len(infos), s.dir, err)
	}
	device := unix.Mkdev(uint32(infos[0].Major), uint32(infos[0].Minor))
	ctl := t.TempDir()
	t.Cleanup(func() {
		if dir, err := openOwnControl(ctl, device); err == nil {
			_ = errors.Join(abortIn(dir), dir.Close())
		}
		s.close()
		_ = unix.Unmount(s.dir, unix.MNT_DETACH)
		_ = s.cmd.Process.Kill()
	})
	return s
}

func journalData(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 100_000+i*100_000) }

// journalOps are requests of all kinds, by name. Each is one that the server has to
// answer.
func journalOps(t *testing.T, s *journalSession) map[string]func() error {
	t.Helper()
	root := filepath.Join(s.dir, Tree(1).Path())
	open := func(path string, flags int) int {
		fd, err := unix.Open(filepath.Join(root, path), flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		s.open = append(s.open, fd)
		return fd
	}
	file, dir, link := open("dir/1", unix.O_RDONLY|unix.O_DIRECT), open("dir", unix.O_RDONLY), open("link", unix.O_PATH|unix.O_NOFOLLOW)
	mapped := open("dir/0", unix.O_RDONLY)
	want := func(what string, ok bool, err error) error {
		if err == nil && !ok {
			err = fmt.Errorf("%s is wrong", what)
		}
		return err
	}
	ops := map[string]func() error{
		"lookup": func() error {
			var st unix.Stat_t
			err := unix.Fstatat(dir, "2", &st, 0)
			return want("size", st.Size == int64(len(journalData(2))), err)
		},
		"lookup of nothing": func() error {
			var st unix.Stat_t
			if err := unix.Fstatat(dir, "nothing", &st, 0); !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%w, want ENOENT", err)
			}
			return nil
		},
		"getattr": func() error {
			var st unix.Statx_t
			err := unix.Statx(file, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
			return want("size", st.Size == uint64(len(journalData(1))), err)
		},
		"readdir": func() error {
			n, err := unix.ReadDirent(dir, make([]byte, 4096))
			return want("listing", n > 0, err)
		},
		"readlink": func() error {
			buf := make([]byte, 100)
			n, err := unix.Readlinkat(link, "", buf)
			return want("target", string(buf[:max(n, 0)]) == "dir/1", err)
		},
		"getxattr": func() error {
			buf := make([]byte, 100)
			n, err := unix.Fgetxattr(dir, "user.a", buf)
			return want("value", string(buf[:max(n, 0)]) == "value", err)
		},
		"listxattr": func() error {
			n, err := unix.Flistxattr(dir, make([]byte, 100))
			return want("list", n == len("user.a\x00"), err)
		},
		"statfs": func() error {
			var st unix.Statfs_t
			err := unix.Fstatfs(dir, &st)
			return want("block size", st.Bsize == blockSize, err)
		},
		"read into the page cache": func() error {
			buf := make([]byte, 1000)
			n, err := unix.Pread(mapped, buf, 0)
			return want("content", bytes.Equal(buf[:max(n, 0)], journalData(0)[:1000]), err)
		},
	}
	for i := range 20 {
		ops[fmt.Sprint("read ", i)] = func() error {
			buf := make([]byte, 8192)[:4096]
			skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(buf)))) & (blockSize - 1)
			buf = buf[skip : skip+blockSize : skip+blockSize]
			n, err := unix.Pread(file, buf, int64(i)*blockSize)
			return want("content", bytes.Equal(buf[:max(n, 0)], journalData(1)[:blockSize]), err)
		}
	}
	return ops
}

// A server that is killed while it has requests of every kind leaves them to the next
// one, which may be killed, too.
func TestJournaledRequestsAreAnswered(t *testing.T) {
	if config := os.Getenv(journalEnv); config != "" {
		runJournalChild(t, config)
	}
	s := startJournalSession(t)
	results := inFlightWhenKilled(t, s)
	for range 2 {
		s.start(t, false)
		s.kill(t)
	}
	s.start(t, true)
	for name, result := range results {
		select {
		case err := <-result:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s is not answered", name)
		}
	}
	s.inFlight(t, 0)
	if end := s.end(t); end != (journalEnd{}) {
		t.Errorf("%+v", end)
	}
}

// Requests that are lost all the same fail, rather than hang for ever.
func TestLostRequestsFail(t *testing.T) {
	if config := os.Getenv(journalEnv); config != "" {
		runJournalChild(t, config)
	}
	s := startJournalSession(t)
	results := inFlightWhenKilled(t, s)
	j, used := mustOpenJournal(t, s.kept[2])
	for _, slot := range used {
		j.free(slot)
	}
	s.start(t, true)
	for name, result := range results {
		select {
		case err := <-result:
			if !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.EIO) {
				t.Errorf("%s: %v, want ECONNABORTED, ENOTCONN or EIO", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s hangs", name)
		}
	}
	if end := s.end(t); end.Lost != 1 {
		t.Errorf("%+v, want one session lost", end)
	}
}

// inFlightWhenKilled starts journalOps, and kills the server when all are with it.
func inFlightWhenKilled(t *testing.T, s *journalSession) map[string]chan error {
	t.Helper()
	ops := journalOps(t, s)
	s.kill(t)
	s.start(t, false)
	results := make(map[string]chan error)
	for name, op := range ops {
		result := make(chan error, 1)
		results[name] = result
		go func() { result <- op() }()
	}
	s.inFlight(t, len(ops))
	s.kill(t)
	return results
}

// readFS answers each READ by a function.
type readFS struct {
	fuse.RawFileSystem

	read func(buf []byte) (fuse.ReadResult, fuse.Status)
}

func (f readFS) Read(_ <-chan struct{}, _ *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	return f.read(buf)
}

// lateResult has its bytes nowhere before they are asked for.
type lateResult struct{ fuse.ReadResult }

func (lateResult) Bytes(buf []byte) ([]byte, fuse.Status) { return append(buf[:0], "late"...), fuse.OK }
func (lateResult) Done()                                  {}

// A READ, which go-fuse does not serialize here, is answered whatever its handler does.
func TestJournaledRead(t *testing.T) {
	full := func(buf []byte) (fuse.ReadResult, fuse.Status) {
		return fuse.ReadResultData(buf), fuse.OK
	}
	for name, c := range map[string]struct {
		size   uint32
		read   func(buf []byte) (fuse.ReadResult, fuse.Status)
		length int
		status fuse.Status
	}{
		"all":    {size: 5000, read: full, length: 5000},
		"most":   {size: requestSize, read: full, length: requestSize},
		"beyond": {size: 1 << 31, read: full, length: requestSize},
		"empty": {size: 10, read: func([]byte) (fuse.ReadResult, fuse.Status) {
			return fuse.ReadResultData(nil), fuse.OK
		}},
		"parts": {size: 10, length: 3, read: func([]byte) (fuse.ReadResult, fuse.Status) {
			return &aheadResult{parts: [][]byte{{1, 2}, {3}}}, fuse.OK
		}},
		"late": {size: 10, length: 4, read: func([]byte) (fuse.ReadResult, fuse.Status) { return lateResult{}, fuse.OK }},
		"error": {size: 10, status: fuse.Status(unix.ESTALE), read: func([]byte) (fuse.ReadResult, fuse.Status) {
			return nil, fuse.Status(unix.ESTALE)
		}},
		"panic": {size: 10, status: fuse.EIO, read: func([]byte) (fuse.ReadResult, fuse.Status) { panic("of the test") }},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			in := os.NewFile(uintptr(pair[0]), "answers")
			defer func() { _ = in.Close() }()
			s := &journaled{fs: readFS{fuse.NewDefaultRawFileSystem(), c.read}, fd: pair[1]}
			request := fuse.ReadIn{InHeader: fuse.InHeader{Opcode: readOp, Unique: 42 | uniqueResent}, Size: c.size}
			go func() {
				s.answer(unsafe.Slice((*byte)(unsafe.Pointer(&request)), unsafe.Sizeof(request)))
				_ = unix.Close(pair[1])
			}()
			reply, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			want := fuse.OutHeader{Length: uint32(outHeader + c.length), Status: -int32(c.status), Unique: 42}
			if len(reply) != outHeader+c.length || *replyHeader(reply) != want {
				t.Errorf("%d bytes, %+v, want %+v", len(reply), *replyHeader(reply[:outHeader]), want)
			}
		})
	}
}
