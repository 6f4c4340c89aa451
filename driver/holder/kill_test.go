package holder

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Clients and holders that are killed are processes of their own: the test binary again,
// with one of these set to the socket.
const (
	clientEnv = "EROFS_CSI_HOLDER_TEST_CLIENT"
	holderEnv = "EROFS_CSI_HOLDER_TEST_HOLDER"
	limitEnv  = "EROFS_CSI_HOLDER_TEST_LIMIT" // RLIMIT_NOFILE of such a process
)

func TestMain(m *testing.M) {
	var err error
	if limit, _ := strconv.ParseUint(os.Getenv(limitEnv), 10, 32); limit > 0 {
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit})
	}
	switch path := os.Getenv(clientEnv); {
	case err != nil:
	case path != "":
		err = runClient(path)
	case os.Getenv(holderEnv) != "":
		err = Run(context.Background(), os.Getenv(holderEnv), 0, os.Stdout, os.Stderr)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runClient takes over what is kept under "engine", counts its lives in meta, reads a
// byte of the one file, of which it makes one if there is none, prints both, and waits
// to be killed.
func runClient(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, path, "engine")
	if err != nil {
		return err
	}
	kept, err := c.Items()
	if err != nil {
		return err
	}
	life, file := uint32(0), (*os.File)(nil)
	if len(kept) > 0 {
		life, file = binary.LittleEndian.Uint32(kept[0].Meta), kept[0].Files[0]
	} else {
		fd, err := unix.MemfdCreate("kept", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "kept")
		if _, err := file.WriteAt([]byte("abcdefghijklmnopqrstuvwxyz"), 0); err != nil {
			return err
		}
	}
	b := make([]byte, 1)
	if _, err := file.Read(b); err != nil {
		return err
	}
	if err := c.Put("file", binary.LittleEndian.AppendUint32(nil, life+1), file); err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "life %d reads %s\n", life, b)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// startProcess runs the test binary again, and returns it with its first line.
func startProcess(t *testing.T, env ...string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("no line: %v, stderr: %s", err, stderr)
	}
	return cmd, strings.TrimSpace(line)
}

// TestKilledClients: each client is killed, and its successor goes on with the same open
// file, at the offset where it was.
func TestKilledClients(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	for life := range 5 {
		cmd, line := startProcess(t, clientEnv+"="+path)
		if want := fmt.Sprintf("life %d reads %c", life, 'a'+life); line != want {
			t.Errorf("%q, want %q", line, want)
		}
		if life == 4 {
			break
		}
		next := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		go func() { // waits for the name already
			c, err := Dial(ctx, path, "engine")
			if err == nil {
				err = c.Close()
			}
			next <- err
		}()
		select {
		case err := <-next:
			t.Fatalf("the name of a living client was had: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		must(t, cmd.Process.Kill())
		must(t, <-next)
		cancel()
		_ = cmd.Wait()
	}
}

// TestKilledHolder: while holders are killed, a client puts, deletes and never fails; at
// the end the last one keeps what it should.
func TestKilledHolder(t *testing.T) {
	path := socketPath(t)
	cmd, line := startProcess(t, holderEnv+"="+path)
	if line != "ready" {
		t.Fatalf("first line %q", line)
	}
	c := dial(t, path, "engine")
	file := memfd(t, "x")
	var stop atomic.Bool
	worked := make(chan int, 1)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			key := fmt.Sprint(n % 50)
			if err := c.Put(key, []byte(fmt.Sprint(n)), file); err != nil {
				t.Errorf("put: %v", err)
			}
			if n%3 == 0 {
				if err := c.Delete(key); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
			time.Sleep(100 * time.Microsecond)
		}
		worked <- n
	}()
	for range 10 {
		time.Sleep(30 * time.Millisecond)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		cmd, _ = startProcess(t, holderEnv+"="+path)
	}
	stop.Store(true)
	n := <-worked
	eventually(t, "connected, nothing pending", func() bool { s := c.Status(); return s.Connected && s.Pending == 0 })
	if s := c.Status(); s.Losses < 1 || s.Losses > 10 {
		t.Errorf("%d losses, 10 holders were killed", s.Losses)
	}
	want := make(map[string]string)
	for i := range n {
		want[fmt.Sprint(i%50)] = fmt.Sprint(i)
		if i%3 == 0 {
			delete(want, fmt.Sprint(i%50))
		}
	}
	list := items(t, c)
	for _, it := range list {
		if want[it.Key] != string(it.Meta) || len(it.Files) != 1 {
			t.Errorf("%q has %q and %d files, want %q", it.Key, it.Meta, len(it.Files), want[it.Key])
		}
	}
	if len(list) != len(want) {
		t.Errorf("%d items, want %d", len(list), len(want))
	}
}

// TestStoppedHolder: a holder that does not answer is one that is lost, and it makes
// nobody wait but for the time of one request. What it did not do it does later.
func TestStoppedHolder(t *testing.T) {
	path := socketPath(t)
	cmd, _ := startProcess(t, holderEnv+"="+path)
	c := dial(t, path, "engine")
	must(t, cmd.Process.Signal(unix.SIGSTOP))
	eventually(t, "stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		must(t, err)
		return strings.Contains(string(stat), ") T ")
	})
	began := time.Now()
	must(t, c.Put("first", []byte("1"), memfd(t, "x")))
	if took := time.Since(began); took > 2*requestTimeout {
		t.Errorf("the first put took %s", took)
	}
	eventually(t, "lost", func() bool { return !c.Status().Connected })
	began = time.Now()
	for i := range 100 {
		must(t, c.Put(fmt.Sprint(i), nil))
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("100 puts while the holder is lost took %s", took)
	}
	must(t, cmd.Process.Signal(unix.SIGCONT))
	eventually(t, "connected", func() bool { s := c.Status(); return s.Connected && s.Pending == 0 })
	if list := items(t, c); len(list) != 101 {
		t.Errorf("%d items", len(list))
	}
}

// TestFewDescriptors: RLIMIT_NOFILE bounds what is kept, with a clear error, and the
// holder goes on.
func TestFewDescriptors(t *testing.T) {
	path := socketPath(t)
	startProcess(t, holderEnv+"="+path, limitEnv+"="+fmt.Sprint(reserved+100))
	c := dial(t, path, "engine")
	file := memfd(t, "x")
	files := make([]*os.File, 50)
	for i := range files {
		files[i] = file
	}
	must(t, c.Put("a", nil, files...))
	must(t, c.Put("b", nil, files...))
	err := c.Put("c", nil, file)
	if err == nil || !strings.Contains(err.Error(), "100 descriptors are kept, and 1 more are not allowed (RLIMIT_NOFILE)") {
		t.Errorf("one more: %v", err)
	}
	must(t, c.Delete("a"))
	must(t, c.Put("c", nil, files...))
	if list := items(t, c); len(list) != 2 || list[1].Key != "c" || len(list[1].Files) != 50 {
		t.Errorf("kept: %v", list)
	}
}
