package holder

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func discard(string, ...any) {}

// TestSocket: the socket of a dead holder is replaced, that of a living one and other
// files are not.
func TestSocket(t *testing.T) {
	path := socketPath(t)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	must(t, err)
	l.SetUnlinkOnClose(false)
	if err := Serve(t.Context(), path, discard); !errors.Is(err, ErrInUse) {
		t.Errorf("a socket on which something listens: %v", err)
	}
	must(t, l.Close())

	r := start(t, path) // as after a kill
	must(t, dial(t, path, "engine").Put("k", nil))
	if err := Serve(t.Context(), path, discard); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second holder: %v", err)
	}
	must(t, dial(t, path, "other").Put("k", nil))
	r.end()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after the end: %v", err)
	}

	must(t, os.WriteFile(path, nil, 0o600))
	if err := Serve(t.Context(), path, discard); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	must(t, os.Remove(path))
	if err := Serve(t.Context(), path+strings.Repeat("x", 100), discard); err == nil || !strings.Contains(err.Error(), "a path may have 103 bytes") {
		t.Errorf("a long path: %v", err)
	}
	if err := Serve(t.Context(), path+"/x/y", discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// TestEnd: what is let go is logged, and clients hear of it at once.
func TestEnd(t *testing.T) {
	path := socketPath(t)
	r := start(t, path)
	c := dial(t, path, "engine")
	read, write, err := os.Pipe()
	must(t, err)
	defer func() { must(t, read.Close()) }()
	must(t, c.Put("a", nil, write, write))
	must(t, c.Put("b", nil, write))
	must(t, write.Close())
	must(t, c.Close())
	r.end()
	if !strings.Contains(r.logged(), "3 descriptors of 2 items are let go") {
		t.Errorf("log: %s", r.logged())
	}
	must(t, read.SetReadDeadline(time.Now().Add(20*time.Second)))
	if n, err := read.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a pipe whose other end was kept: %d, %v", n, err)
	}
}

// TestNobodyListens: Dial waits for a holder, until its context ends.
func TestNobodyListens(t *testing.T) {
	path := socketPath(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path, "engine"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := List(t.Context(), path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("list: %v", err)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		_ = Serve(ctx, path, discard)
	}()
	must(t, dial(t, path, "engine").Put("k", nil))
}

// TestList: what is kept is told without a claim.
func TestList(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	if names, err := List(t.Context(), path); err != nil || len(names) != 0 {
		t.Errorf("nothing: %v, %v", names, err)
	}
	a, b := dial(t, path, "a"), dial(t, path, "b")
	must(t, a.Put("2", []byte("two"), memfd(t, ""), memfd(t, "")))
	must(t, a.Put("1", nil))
	must(t, a.Close())
	eventually(t, "a is gone", func() bool {
		names, err := List(t.Context(), path)
		must(t, err)
		return !names[0].Claimed
	})
	names, err := List(t.Context(), path)
	must(t, err)
	if len(names) != 2 || names[0].Name != "a" || names[1].Name != "b" || !names[1].Claimed || names[1].PID != os.Getpid() || len(names[1].Items) != 0 {
		t.Fatalf("names: %+v", names)
	}
	want := []ListedItem{{Key: "1"}, {Key: "2", Descriptors: 2, MetaBytes: 3}}
	if len(names[0].Items) != 2 || names[0].Items[0] != want[0] || names[0].Items[1] != want[1] {
		t.Errorf("items: %+v", names[0].Items)
	}
	must(t, b.Close())
	eventually(t, "b is gone", func() bool {
		names, err := List(t.Context(), path)
		must(t, err)
		return len(names) == 1
	})
}

// fakeHolder answers each connection by script, and closes it when script returns.
func fakeHolder(t *testing.T, path string, script func(p *packets)) {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			script(newPackets(conn))
			_ = conn.Close()
		}
	}()
}

// reply answers the next request.
func (p *packets) reply(m message) bool {
	var asked message
	fds, err := p.receive(&asked)
	closeAll(fds)
	if err != nil {
		return false
	}
	m.id += asked.id
	return p.send(&m, time.Second) == nil
}

// TestStrangeHolders: a client is told what is wrong with its holder, and waits for
// none for ever.
func TestStrangeHolders(t *testing.T) {
	for name, c := range map[string]struct {
		hello message
		want  error
	}{
		"only newer":      {*refusal(0, ErrVersion), ErrVersion},
		"another version": {message{kind: kindHello, lowest: 1, highest: 7}, ErrProtocol},
		"another answer":  {message{kind: kindOK}, ErrProtocol},
		"another id":      {message{kind: kindHello, id: 9, lowest: 1, highest: 1}, ErrProtocol},
		"not for us":      {*refusal(0, ErrRefused), ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			fakeHolder(t, path, func(p *packets) { p.reply(c.hello) })
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if _, err := Dial(ctx, path, "engine"); !errors.Is(err, c.want) || ctx.Err() != nil {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		path := socketPath(t)
		end := make(chan struct{})
		defer close(end)
		fakeHolder(t, path, func(*packets) { <-end })
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := Dial(ctx, path, "engine"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

// TestHolderDiesMidway: a change whose answer does not come is made again.
func TestHolderDiesMidway(t *testing.T) {
	path := socketPath(t)
	connections := 0
	fakeHolder(t, path, func(p *packets) {
		connections++
		ok := p.reply(message{kind: kindHello, lowest: 1, highest: 1}) && p.reply(message{kind: kindOK})
		if !ok || connections == 1 {
			var m message
			fds, _ := p.receive(&m) // the put; then its connection ends
			closeAll(fds)
			return
		}
		for p.reply(message{kind: kindOK}) {
		}
	})
	c := dial(t, path, "engine")
	must(t, c.Put("k", []byte("1"), memfd(t, "x")))
	eventually(t, "it is put again", func() bool { s := c.Status(); return s.Connected && s.Pending == 0 && s.Losses == 1 })
	must(t, c.Delete("k"))
}
