package holder

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// helloTimeout is how long a client may take for its first message, idleTimeout
	// for the next while it has no name.
	helloTimeout = 5 * time.Second
	idleTimeout  = time.Minute
	// answerTimeout is how long an answer may wait to be taken.
	answerTimeout = 30 * time.Second
)

// peer is a client's connection, as the holder sees it. Its goroutine does one thing
// after the other.
type peer struct {
	*packets
	server  *server
	pid     int32
	serial  uint64
	claimed atomic.Bool // name is not ""
	version uint16      // 0 before the hello
	name    string
}

// processID is the client's, 0: unseen.
func (p *peer) processID() uint32 { return uint32(max(p.pid, 0)) }

// serve answers until the client goes. A panic ends this connection alone: what the
// holder keeps for all others is worth more than to know of it at once.
func (p *peer) serve() {
	defer func() {
		if r := recover(); r != nil {
			p.server.log("Panic while serving process %d, whose connection is closed: %v\n%s", p.pid, r, debug.Stack())
		}
		_ = p.conn.Close()
		if p.name != "" {
			p.server.kept.release(p.name)
			p.server.log("Process %d, client of %q, is gone", p.pid, p.name)
		}
		p.server.forget(p)
	}()
	_ = p.conn.SetReadDeadline(time.Now().Add(helloTimeout))
	for {
		var m message
		fds, err := p.receive(&m)
		if err == nil {
			err = p.answer(&m, fds)
			if err == nil {
				continue
			}
		}
		p.server.letGo(fds)
		if !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrRefused) {
			return // the connection's
		}
		if err := p.send(refusal(m.id, err), answerTimeout); err != nil || p.version == 0 {
			return
		}
	}
}

// answer does what a message asks for. With an error fds are still the caller's.
func (p *peer) answer(m *message, fds []int) error {
	k := p.server.kept
	switch {
	case m.kind == kindHello:
		return p.hello(m)
	case p.version == 0:
		return fmt.Errorf("%w: message %d before a hello", ErrProtocol, m.kind)
	case m.kind == kindList:
		if p.name == "" {
			_ = p.conn.SetReadDeadline(time.Now().Add(idleTimeout))
		}
		e := k.list(m.name, m.key)
		e.id = m.id
		return p.send(e, answerTimeout)
	case m.kind == kindOpen:
		return p.becomeOpener(m, fds)
	case m.kind == kindClaim:
		return p.claim(m)
	case p.name == "":
		return fmt.Errorf("%w: message %d before a claim", ErrProtocol, m.kind)
	}
	switch m.kind {
	case kindPut:
		for _, fd := range fds {
			if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
				return fmt.Errorf("%w: sockets are not kept", ErrRefused)
			}
		}
		old, err := k.put(p.name, m.key, &item{meta: append([]byte(nil), m.meta...), fds: fds})
		if err != nil {
			return err
		}
		p.server.letGo(old)
		p.acknowledge(m)
	case kindDelete:
		p.server.letGo(k.drop(p.name, m.key))
		p.acknowledge(m)
	case kindNext:
		key, it := k.next(p.name, m.key)
		if it == nil {
			return p.send(&message{kind: kindEnd, id: m.id}, answerTimeout)
		}
		found := &message{kind: kindItem, id: m.id, key: key, meta: it.meta, files: uint16(len(it.fds))} //nolint:gosec // MaxFiles bounds it
		return p.send(found, answerTimeout, it.fds...)
	default:
		return errUnknown // an answer, which is no request
	}
	return nil
}

// acknowledge tells that a change is done. If it can't, reading fails next: what was
// kept stays kept.
func (p *peer) acknowledge(m *message) {
	if err := p.send(&message{kind: kindOK, id: m.id}, answerTimeout); err != nil {
		_ = p.conn.Close()
	}
}

func (p *peer) hello(m *message) error {
	if p.version != 0 {
		return fmt.Errorf("%w: a second hello", ErrProtocol)
	}
	version := min(m.highest, maxVersion)
	if version < max(m.lowest, minVersion) {
		return fmt.Errorf("%w: the holder speaks %d to %d, its client %d to %d", ErrVersion, minVersion, maxVersion, m.lowest, m.highest)
	}
	p.version = version
	_ = p.conn.SetReadDeadline(time.Now().Add(idleTimeout))
	return p.send(&message{kind: kindHello, id: m.id, lowest: minVersion, highest: version}, answerTimeout)
}

// claim waits until the client has the name, or goes.
func (p *peer) claim(m *message) error {
	if p.name != "" {
		return fmt.Errorf("%w: a second claim", ErrProtocol)
	}
	told := uint32(0)
	for first := true; ; first = false {
		other, freed := p.server.kept.claim(m.name, p)
		if other == nil {
			break
		}
		if pid := other.processID(); first || pid != told {
			told = pid
			if err := p.send(&message{kind: kindBusy, id: m.id, pid: pid}, answerTimeout); err != nil {
				return err
			}
		}
		if err := p.waitFor(freed); err != nil {
			return err
		}
	}
	p.name = m.name
	p.claimed.Store(true)
	_ = p.conn.SetReadDeadline(time.Time{})
	p.server.log("Process %d is the client of %q", p.pid, p.name)
	p.acknowledge(m)
	return nil
}

// waitFor waits for a channel to be closed. Meanwhile the client has nothing to say; it
// may go, which is an error.
func (p *peer) waitFor(freed <-chan struct{}) error {
	_ = p.conn.SetReadDeadline(time.Time{})
	gone := make(chan error, 1)
	go func() {
		var m message
		fds, err := p.receive(&m)
		p.server.letGo(fds)
		if err == nil {
			err = net.ErrClosed // it speaks out of turn
		}
		gone <- err
	}()
	select {
	case err := <-gone:
		return err
	case <-freed:
	}
	_ = p.conn.SetReadDeadline(time.Unix(1, 0)) // ends the reading
	if err := <-gone; !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	_ = p.conn.SetReadDeadline(time.Time{})
	return nil
}
