package holder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// requestTimeout bounds the wait for an answer. A holder does nothing that takes time:
// one that does not answer is stopped, or starved.
const requestTimeout = 5 * time.Second

// errGone says that a connection to the holder has ended.
var errGone = errors.New("holder: connection lost")

// session is one connection to a holder.
type session struct {
	packets *packets
	gone    chan struct{} // closed when the connection has ended
	replies chan reply

	ending sync.Once
	ended  chan struct{} // closed by close

	mu   sync.Mutex // one request at a time
	last uint32     // GUARDED_BY(mu)
}

// reply is a message whose meta is its own.
type reply struct {
	message
	fds []int
	err error
}

// connect opens a session and agrees on the version. ctx bounds it, and nothing later.
func connect(ctx context.Context, path string) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	s := &session{packets: newPackets(conn.(*net.UnixConn)), gone: make(chan struct{}), replies: make(chan reply), ended: make(chan struct{})}
	go s.read()
	r, err := s.request(ctx, &message{kind: kindHello, lowest: minVersion, highest: maxVersion})
	if err == nil && (r.kind != kindHello || r.highest < minVersion || r.highest > maxVersion) {
		err = fmt.Errorf("%w: answer %d to a hello, version %d", ErrProtocol, r.kind, r.highest)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// read passes answers on until the connection ends.
func (s *session) read() {
	defer close(s.gone)
	for {
		var r reply
		r.fds, r.err = s.packets.receive(&r.message)
		if r.err != nil && !errors.Is(r.err, ErrProtocol) && !errors.Is(r.err, ErrLimit) {
			closeAll(r.fds)
			return
		}
		r.meta = append([]byte(nil), r.meta...)
		select {
		case s.replies <- r:
		case <-s.ended:
			closeAll(r.fds)
		}
	}
}

// close ends the connection.
func (s *session) close() {
	s.ending.Do(func() {
		close(s.ended)
		_ = s.packets.conn.Close()
	})
}

// broken ends a connection whose other end does not do as it should.
func (s *session) broken(format string, args ...any) error {
	s.close()
	return fmt.Errorf("%w: %w: %s", errGone, ErrProtocol, fmt.Sprintf(format, args...))
}

// request sends m and waits for its answer. Descriptors of the answer are the caller's.
//
// Errors: what the holder refuses; errGone when it is not known what the holder did.
// The session is then closed.
func (s *session) request(ctx context.Context, m *message, fds ...int) (reply, error) {
	return s.requestFrom(ctx, m, func(uint32) {}, fds...)
}

// requestFrom calls busy when the holder says that a name is another client's.
func (s *session) requestFrom(ctx context.Context, m *message, busy func(pid uint32), fds ...int) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	m.id = s.last
	if err := s.packets.send(m, requestTimeout, fds...); err != nil {
		if errors.Is(err, ErrProtocol) {
			return reply{}, err // it could not be written, and was not sent
		}
		defer s.close()
		select {
		case r := <-s.replies: // why it does not listen any more
			closeAll(r.fds)
			if r.err == nil && r.kind == kindError {
				return reply{}, r.message.err()
			}
		case <-s.gone:
		case <-time.After(requestTimeout):
		}
		return reply{}, fmt.Errorf("%w: %w", errGone, err)
	}
	for {
		select {
		case r := <-s.replies:
			switch {
			case r.err == nil && r.id == m.id && r.kind == kindBusy:
				busy(r.pid)
				continue
			case r.err == nil && r.kind == kindError:
				return reply{}, r.message.err()
			case r.err == nil && r.id == m.id:
				return r, nil
			}
			closeAll(r.fds)
			if r.err == nil {
				return reply{}, s.broken("answer to request %d, want %d", r.id, m.id)
			}
			s.close()
			return reply{}, fmt.Errorf("%w: %w", errGone, r.err)
		case <-s.gone:
			return reply{}, errGone
		case <-ctx.Done():
			s.close()
			return reply{}, fmt.Errorf("%w: no answer: %w", errGone, ctx.Err())
		}
	}
}

// do makes a request whose answer is kindOK, within requestTimeout.
func (s *session) do(ctx context.Context, m *message, fds ...int) error {
	r, err := s.ask(ctx, m, kindOK, fds...)
	closeAll(r.fds)
	return err
}

// ask makes a request whose answer is of a kind, or kindEnd, within requestTimeout.
func (s *session) ask(ctx context.Context, m *message, want kind, fds ...int) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := s.request(ctx, m, fds...)
	if err == nil && r.kind != want && (r.kind != kindEnd || want == kindOK) {
		closeAll(r.fds)
		return reply{}, s.broken("answer %d, want %d", r.kind, want)
	}
	return r, err
}

// claim waits until ctx ends for the name.
func (s *session) claim(ctx context.Context, name string) error {
	why := "the holder does not answer"
	r, err := s.requestFrom(ctx, &message{kind: kindClaim, name: name}, func(pid uint32) {
		why = fmt.Sprintf("process %d has the name %q", pid, name)
	})
	if err == nil && r.kind != kindOK {
		err = s.broken("answer %d to a claim", r.kind)
	}
	if err != nil {
		s.close()
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %s", ctx.Err(), why)
		}
	}
	return err
}

// items asks for all that is kept under the claimed name.
func (s *session) items(ctx context.Context) (items []Item, err error) {
	for key := ""; ; {
		r, err := s.ask(ctx, &message{kind: kindNext, key: key}, kindItem)
		if err == nil && r.kind == kindItem && r.key <= key {
			closeAll(r.fds)
			err = s.broken("item %q comes after %q", r.key, key)
		}
		if err != nil {
			for _, it := range items {
				it.close()
			}
			return nil, err
		}
		if r.kind == kindEnd {
			return items, nil
		}
		key = r.key
		it := Item{Key: key, Meta: r.meta}
		for i, fd := range r.fds {
			it.Files = append(it.Files, os.NewFile(uintptr(fd), fmt.Sprintf("%s/%d", key, i)))
		}
		items = append(items, it)
	}
}

func (it Item) close() {
	for _, f := range it.Files {
		_ = f.Close()
	}
}
