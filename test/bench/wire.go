package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// The wire to a registry that is far away: 50 ms there and back, 100 Mbit/s to us. It is
// made of a relay, because kernels without sch_netem are common.
const (
	wireDelay = 25 * time.Millisecond
	wireRate  = 100_000_000 / 8 // bytes a second, of all connections together
	wirePiece = 16 << 10
	wireQueue = 32 // pieces of a connection under way
)

// wire relays connections to a server on loopback.
type wire struct {
	host   string
	listen net.Listener
	to     string

	mu   sync.Mutex
	next time.Time // when the wire is free; GUARDED_BY(mu)
	open map[net.Conn]bool
}

func newWire(ctx context.Context, to string) (*wire, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &wire{host: l.Addr().String(), listen: l, to: to, open: make(map[net.Conn]bool)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.relay(ctx, c)
		}
	}()
	return w, nil
}

func (w *wire) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.open {
		_ = c.Close()
	}
	return w.listen.Close()
}

func (w *wire) relay(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	time.Sleep(2 * wireDelay) // the handshake
	back, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.to)
	if err != nil {
		return
	}
	defer func() { _ = back.Close() }()
	w.mu.Lock()
	w.open[c], w.open[back] = true, true
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { w.pump(back, c, false); _ = back.Close() })
	both.Go(func() { w.pump(c, back, true); _ = c.Close() })
	both.Wait()
	w.mu.Lock()
	delete(w.open, c)
	delete(w.open, back)
	w.mu.Unlock()
}

// piece is what is under way.
type piece struct {
	bytes []byte
	due   time.Time
}

func (w *wire) pump(to io.Writer, from io.Reader, limited bool) {
	queue := make(chan piece, wireQueue)
	go func() {
		defer close(queue)
		for {
			buf := make([]byte, wirePiece)
			n, err := from.Read(buf)
			if n > 0 {
				queue <- piece{buf[:n], w.slot(n, limited)}
			}
			if err != nil {
				return
			}
		}
	}()
	var failed error
	for p := range queue {
		time.Sleep(time.Until(p.due))
		if failed == nil {
			_, failed = to.Write(p.bytes)
		}
		if failed != nil && errors.Is(failed, net.ErrClosed) {
			continue // what is queued is lost
		}
	}
}

// slot is when so many bytes have arrived.
func (w *wire) slot(n int, limited bool) time.Time {
	now := time.Now()
	if !limited {
		return now.Add(wireDelay)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next.Before(now) {
		w.next = now
	}
	w.next = w.next.Add(time.Duration(n) * time.Second / wireRate)
	return w.next.Add(wireDelay)
}
