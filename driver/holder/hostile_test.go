package holder

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// raw is a connection that says what it likes.
type raw struct {
	t *testing.T
	*packets
}

func connectRaw(t *testing.T, path string) *raw {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return &raw{t, newPackets(conn)}
}

// hello is a connection that has agreed on the version, and with a name has claimed it.
func hello(t *testing.T, path, name string) *raw {
	t.Helper()
	r := connectRaw(t, path)
	if m := r.ask(&message{kind: kindHello, lowest: 1, highest: 1}); m.kind != kindHello {
		t.Fatalf("hello: %+v", m)
	}
	if name != "" {
		m := r.ask(&message{kind: kindClaim, name: name})
		for m.kind == kindBusy { // with who had it before
			m = r.answer()
		}
		if m.kind != kindOK {
			t.Fatalf("claim: %+v", m)
		}
	}
	return r
}

func (r *raw) ask(m *message, fds ...int) message {
	r.t.Helper()
	must(r.t, r.send(m, 20*time.Second, fds...))
	return r.answer()
}

// packet sends any bytes.
func (r *raw) packet(b []byte, fds ...int) {
	r.t.Helper()
	_, _, err := r.conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	must(r.t, err)
}

// empty sends descriptors with no byte, which Go's own functions would add.
func (r *raw) empty(fds ...int) {
	r.t.Helper()
	oob := unix.UnixRights(fds...)
	h := unix.Msghdr{Control: &oob[0]}
	h.SetControllen(len(oob))
	conn, err := r.conn.SyscallConn()
	must(r.t, err)
	must(r.t, conn.Control(func(fd uintptr) {
		if _, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&h)), 0); errno != 0 {
			r.t.Error(errno)
		}
	}))
}

func (r *raw) answer() message {
	r.t.Helper()
	var m message
	fds, err := r.receive(&m)
	closeAll(fds)
	must(r.t, err)
	return m
}

// ended expects the holder to have closed the connection.
func (r *raw) ended() {
	r.t.Helper()
	var m message
	if _, err := r.receive(&m); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Errorf("the connection is not closed: %+v, %v", m, err)
	}
}

func many(fd, n int) []int {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = fd
	}
	return fds
}

// TestVersions: old and new clients are spoken to in a version that both know.
func TestVersions(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	for _, c := range []struct{ lowest, highest, want uint16 }{
		{1, 1, 1}, {1, 9, 1}, {0, 1, 1}, {0, 0, 0}, {2, 9, 0}, {9, 1, 0},
	} {
		r := connectRaw(t, path)
		m := r.ask(&message{kind: kindHello, id: 5, lowest: c.lowest, highest: c.highest})
		if m.id != 5 {
			t.Errorf("answer to %d", m.id)
		}
		if c.want != 0 {
			if m.kind != kindHello || m.highest != c.want {
				t.Errorf("versions %d to %d: %+v", c.lowest, c.highest, m)
			}
			continue
		}
		if m.kind != kindError || !errors.Is(m.err(), ErrVersion) || !strings.Contains(m.text, "speaks 1 to 1") {
			t.Errorf("versions %d to %d: %+v", c.lowest, c.highest, m)
		}
		r.ended()
	}
}

// TestOutOfTurn: what is no message, is unknown, or comes at the wrong time gets an
// error as its answer.
func TestOutOfTurn(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	for _, c := range []struct {
		after  string // "", "hello" or "claim"
		packet string
		text   string
	}{
		{"", "x", "cut off"},
		{"", "\x01\x00\x00\x00\x01\x00\x00\x00HTTP\x01\x00\x01\x00", "another protocol"},
		{"", "\x06\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00", "before a hello"},
		{"hello", "\x05\x00\x00\x00\x01\x00\x00\x00\x00\x00", "before a claim"},
		{"hello", "\x01\x00\x00\x00\x01\x00\x00\x00HORE\x01\x00\x01\x00", "second hello"},
		{"hello", "\x63\x00\x00\x00\x01\x00\x00\x00new", "unknown message"},
		{"claim", "\x02\x00\x00\x00\x01\x00\x00\x00\x01\x00n", "second claim"},
		{"claim", "\x40\x00\x00\x00\x01\x00\x00\x00", "unknown message"},
		{"claim", "\x04\x00\x01\x00\x01\x00\x00\x00\x01\x00k", "reserved"},
		{"claim", "\x03\x00\x00\x00\x01\x00\x00\x00\x01\x00k\xff\xff\xff\xff", "4294967295 bytes, want at most 32768"},
		{"claim", strings.Repeat("\x03\x00", 50000), "holder: protocol violated"},
	} {
		var r *raw
		switch c.after {
		case "":
			r = connectRaw(t, path)
		case "hello":
			r = hello(t, path, "")
		case "claim":
			r = hello(t, path, fmt.Sprintf("name of %q", c.text))
		}
		r.packet([]byte(c.packet))
		m := r.answer()
		if m.kind != kindError || !errors.Is(m.err(), ErrProtocol) || !strings.Contains(m.text, c.text) {
			t.Errorf("%q: %+v, want an error with %q", c.packet[:min(20, len(c.packet))], m, c.text)
		}
		if c.after == "" {
			r.ended()
		} else if m := r.ask(&message{kind: kindList, id: 77}); m.id != 77 || m.kind == kindError {
			t.Errorf("%q: the connection did not go on: %+v", c.packet[:min(20, len(c.packet))], m)
		}
	}
}

// TestWrongDescriptors: descriptors that are too many, not announced, or sockets are
// not kept, and closed.
func TestWrongDescriptors(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	fd := int(memfd(t, "x").Fd())
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer closeAll(pair[:])
	r := hello(t, path, "engine")
	if m := r.ask(&message{kind: kindPut, key: "good", files: 1}, fd); m.kind != kindOK {
		t.Fatalf("put: %+v", m)
	}
	before := openFiles(t)
	for name, c := range map[string]struct {
		m    message
		fds  []int
		want error
	}{
		"one too many":  {message{kind: kindPut, key: "good", files: MaxFiles + 1}, many(fd, MaxFiles+1), ErrLimit},
		"all there are": {message{kind: kindPut, key: "good", files: 253}, many(fd, 253), ErrLimit},
		"unannounced":   {message{kind: kindPut, key: "good", files: 1}, many(fd, 2), ErrProtocol},
		"missing":       {message{kind: kindPut, key: "good", files: 3}, many(fd, 2), ErrProtocol},
		"none":          {message{kind: kindPut, key: "good", files: 1}, nil, ErrProtocol},
		"of a delete":   {message{kind: kindDelete, key: "good"}, many(fd, 2), ErrProtocol},
		"of a list":     {message{kind: kindList}, many(fd, 64), ErrProtocol},
		"unknown":       {message{kind: kindHello, lowest: 1, highest: 1}, many(fd, 5), ErrProtocol},
		"a socket":      {message{kind: kindPut, key: "good", files: 2}, []int{fd, pair[0]}, ErrRefused},
	} {
		if m := r.ask(&c.m, c.fds...); m.kind != kindError || !errors.Is(m.err(), c.want) {
			t.Errorf("%s: %+v, want %v", name, m, c.want)
		}
	}
	r.packet([]byte("no message"), many(fd, 7)...)
	if m := r.answer(); m.kind != kindError {
		t.Errorf("no message: %+v", m)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	if m := r.ask(&message{kind: kindNext}); m.kind != kindItem || m.key != "good" || m.files != 1 {
		t.Errorf("kept: %+v", m)
	}
	other := connectRaw(t, path)
	other.empty(many(fd, 9)...) // an empty packet is the end of a connection
	other.ended()
	_ = other.conn.Close()
	eventually(t, "all descriptors of an empty packet are closed", func() bool { return openFiles(t) <= before })
}

// TestLeaksNothing: any number of clients and holders later there are as many
// descriptors and goroutines as before.
func TestLeaksNothing(t *testing.T) {
	path := socketPath(t)
	file := memfd(t, "x")
	round := func(n int) {
		r := start(t, path)
		for range n {
			c := dial(t, path, "engine")
			must(t, c.Put("a", make([]byte, 1000), file, file, file))
			must(t, c.Put("b", nil, file))
			list, err := c.Items()
			must(t, err)
			for _, it := range list {
				it.close()
			}
			must(t, c.Close())
			bad := hello(t, path, "bad")
			bad.packet([]byte{3, 0, 0, 0}, many(int(file.Fd()), 64)...)
			_ = bad.conn.Close()
		}
		r.end()
	}
	round(2)
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	round(50)
	eventually(t, "descriptors and goroutines as before", func() bool {
		return openFiles(t) <= files && runtime.NumGoroutine() <= goroutines
	})
}

// TestGarbage: whatever packets come, the holder goes on.
func TestGarbage(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	c := dial(t, path, "engine")
	fd := int(memfd(t, "x").Fd())
	must(t, c.Put("good", []byte("1"), memfd(t, "good")))
	before := openFiles(t)
	seed := [32]byte{1}
	random := rand.New(rand.NewChaCha8(seed))
	for i := range 200 {
		r := hello(t, path, "garbage")
		for range 20 {
			packet := make([]byte, random.IntN(100))
			for j := range packet {
				packet[j] = byte(random.Uint32())
			}
			if random.IntN(2) == 0 {
				packet, _ = messages[random.IntN(len(messages))].m.encode()
				packet[random.IntN(len(packet))] ^= 1 << random.IntN(8)
			}
			if len(packet) == 0 {
				continue
			}
			if _, _, err := r.conn.WriteMsgUnix(packet, unix.UnixRights(many(fd, random.IntN(70))...), nil); err != nil {
				break
			}
			if i%2 == 0 { // odd ones never read
				r.answer()
			}
		}
		_ = r.conn.Close()
	}
	c2 := dial(t, path, "garbage")
	for _, it := range items(t, c2) {
		it.close()
		must(t, c2.Delete(it.Key))
	}
	must(t, c2.Close())
	if got := summary(t, items(t, c)); got != "good=1/good" {
		t.Errorf("kept: %s", got)
	}
	eventually(t, "no descriptor of garbage is left", func() bool { return openFiles(t) <= before+1 }) // one of items
}

// TestIdleClients: connections that say nothing, or wait for a name, keep nobody out.
func TestIdleClients(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	first := dial(t, path, "engine")
	for i := range 3 * maxPeers {
		switch i % 3 {
		case 0:
			connectRaw(t, path)
		case 1:
			hello(t, path, "")
		case 2:
			r := hello(t, path, "")
			if m := r.ask(&message{kind: kindClaim, name: "engine"}); m.kind != kindBusy {
				t.Fatalf("claim: %+v", m)
			}
		}
	}
	must(t, first.Put("k", nil))
	must(t, dial(t, path, "other").Put("k", nil))
	for i := range maxPeers - 2 {
		hello(t, path, fmt.Sprint(i))
	}
	r := connectRaw(t, path) // all have names: too many
	if m := r.answer(); m.kind != kindError || !errors.Is(m.err(), ErrLimit) {
		t.Errorf("one client more: %+v", m)
	}
	r.ended()
	must(t, first.Put("k", nil))
}

// TestDeaf: who does not read its answers, holds nobody else up.
func TestDeaf(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	c := dial(t, path, "engine")
	deaf := hello(t, path, "deaf")
	file := memfd(t, "x")
	deaf.ask(&message{kind: kindPut, key: "k", meta: make([]byte, MaxMeta), files: 1}, int(file.Fd()))
	must(t, deaf.conn.SetDeadline(time.Now().Add(300*time.Millisecond)))
	for sent := 0; ; sent++ { // until the holder waits, and then the socket is full
		if _, err := deaf.conn.Write([]byte{5, 0, 0, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Logf("%d requests without reading: %v", sent, err)
			break
		}
	}
	began := time.Now()
	for i := range 100 {
		must(t, c.Put(fmt.Sprint(i), nil, file))
	}
	if list := items(t, c); len(list) != 100 {
		t.Errorf("%d items", len(list))
	}
	if _, err := List(t.Context(), path); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("another client took %s", took)
	}
}

// TestLimits: all items together are bounded, and what is refused changes nothing.
func TestLimits(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	c := dial(t, path, "engine")
	for name, err := range map[string]error{
		"no key":         c.Put("", nil),
		"long key":       c.Put(strings.Repeat("k", MaxName+1), nil),
		"much meta":      c.Put("k", make([]byte, MaxMeta+1)),
		"too many files": c.Put("k", nil, make([]*os.File, MaxFiles+1)...),
	} {
		if !errors.Is(err, ErrLimit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Put("k", nil, nil); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("a nil file: %v", err)
	}
	if _, err := Dial(t.Context(), path, ""); !errors.Is(err, ErrLimit) {
		t.Errorf("no name: %v", err)
	}
	if _, err := Attach(path, strings.Repeat("n", MaxName+1)); !errors.Is(err, ErrLimit) {
		t.Errorf("a long name: %v", err)
	}
	n := 0
	for ; n < 1000; n++ {
		if err := c.Put(fmt.Sprint(n), make([]byte, MaxMeta)); err != nil {
			if !errors.Is(err, ErrLimit) {
				t.Fatal(err)
			}
			break
		}
	}
	if most := maxBytes / (MaxMeta + itemOverhead + 3); n < most-1 || n > most+1 {
		t.Errorf("%d items of %d bytes were kept, want about %d", n, MaxMeta, most)
	}
	if s := c.Status(); s.Items != n || s.Pending != 0 {
		t.Errorf("status %+v", s)
	}
	must(t, c.Put("0", nil))
	must(t, c.Put(fmt.Sprint(n), make([]byte, MaxMeta)))
	if got := len(items(t, c)); got != n+1 {
		t.Errorf("%d items, want %d", got, n+1)
	}
}

// TestStrangers: only root and the holder's user are served.
func TestStrangers(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	path := socketPath(t)
	r := start(t, path)
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v", info.Mode())
	}
	t.Chdir(path[:strings.LastIndexByte(path, '/')])
	must(t, os.Chmod(".", 0o711))
	must(t, os.Chmod("s", 0o666))
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			done <- errno
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		// The connection is this thread's: Dial would connect on it, too, but try again.
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: "s"}); err != nil {
			done <- err
			return
		}
		b := make([]byte, maxMessage)
		n, err := unix.Read(fd, b)
		var m message
		if err == nil {
			err = m.decode(b[:n])
		}
		if err == nil {
			err = m.err()
		}
		done <- errors.Join(err, ctx.Err())
	}()
	if err := <-done; !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "user 65534") {
		t.Errorf("another user: %v", err)
	}
	if !strings.Contains(r.logged(), "Refused a client") {
		t.Errorf("log: %s", r.logged())
	}
}
