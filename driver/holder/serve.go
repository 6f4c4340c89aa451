package holder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxPeers bounds the connections. One more ends the oldest that has no name.
const maxPeers = 64

// closeTimeout bounds the wait for descriptors to be closed.
const closeTimeout = time.Second

// ErrInUse says that another holder listens on a socket.
var ErrInUse = errors.New("holder: another one serves this socket")

// Serve keeps descriptors for clients on the unix socket at path, of mode 0600, until
// ctx ends: then it lets all of them go. The socket of a holder that died is replaced.
// log is called from several goroutines, with lines about clients that come and go.
//
// Errors: ErrInUse; a path that is too long, or is something else than a socket; what
// keeps it from listening.
func Serve(ctx context.Context, path string, log func(format string, args ...any)) error {
	return serve(ctx, path, 0, log, func() {})
}

// serve calls ready when it listens. What has been abandoned for some time it lets go of;
// 0: nothing.
func serve(ctx context.Context, path string, abandonAfter time.Duration, log func(format string, args ...any), ready func()) (err error) {
	unlock, err := lock(path)
	if err != nil {
		return err
	}
	defer unlock()
	k, err := newKept()
	if err != nil {
		return err
	}
	l, err := listen(ctx, path)
	if err != nil {
		return err
	}
	s := &server{kept: k, log: log, peers: make(map[*peer]struct{})}
	log("Listening on %s, for at most %d descriptors", path, k.maxDescriptors)
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() {
		_ = os.Remove(path) // first, so that a client that reconnects sees at once that nobody is there
		_ = l.Close()
		close(closed)
	})
	if abandonAfter > 0 {
		go s.tend(ctx, abandonAfter)
	}
	ready()
	s.accept(ctx, l)
	<-closed // the lock goes after the socket, which else could be a successor's
	s.end()
	return nil
}

type server struct {
	kept *kept
	log  func(format string, args ...any)
	wg   sync.WaitGroup

	openers openerSet

	mu     sync.Mutex
	peers  map[*peer]struct{} // GUARDED_BY(mu)
	serial uint64             // GUARDED_BY(mu); of the youngest peer
}

// tend lets go of what is abandoned, until ctx ends.
func (s *server) tend(ctx context.Context, after time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(after/10, 10*time.Second)):
		}
		for {
			name, fds := s.kept.abandoned(after)
			if name == "" {
				break
			}
			s.log("Letting go of %d descriptors of %q, which nobody has served for %s", len(fds), name, after)
			s.letGo(fds)
		}
	}
}

// accept serves connections until ctx ends, which closes the listener.
func (s *server) accept(ctx context.Context, l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return
		case err != nil:
			// Out of descriptors or memory, or a client that went: others may come.
			s.log("Accepting a client: %v", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if p := s.add(conn); p != nil {
			s.wg.Go(p.serve)
		}
	}
}

// add makes a peer of a connection, unless there are too many or it may not.
func (s *server) add(conn *net.UnixConn) *peer {
	p := &peer{server: s, packets: newPackets(conn)}
	pid, err := credentials(conn)
	p.pid = pid
	s.mu.Lock()
	if err == nil && len(s.peers) >= maxPeers {
		err = fmt.Errorf("%w: more than %d clients", ErrLimit, maxPeers)
		if old := s.oldestIdle(); old != nil {
			delete(s.peers, old)
			_ = old.conn.Close()
			err = nil
		}
	}
	if err == nil {
		s.serial++
		p.serial = s.serial
		s.peers[p] = struct{}{}
	}
	s.mu.Unlock()
	if err == nil {
		return p
	}
	s.log("Refused a client, process %d: %v", pid, err)
	_ = p.send(refusal(0, err), time.Millisecond) // its buffer is empty: it need not read
	_ = conn.Close()
	return nil
}

// oldestIdle is the peer that has been here for the longest of those without a name.
func (s *server) oldestIdle() (oldest *peer) {
	for p := range s.peers {
		if !p.claimed.Load() && (oldest == nil || p.serial < oldest.serial) {
			oldest = p
		}
	}
	return oldest
}

func (s *server) forget(p *peer) {
	s.mu.Lock()
	delete(s.peers, p)
	s.mu.Unlock()
}

// letGo closes descriptors. Their file systems may have that wait, and mounts of which
// they are the last end: it goes on in the background then, and so does the client.
func (s *server) letGo(fds []int) {
	if len(fds) == 0 {
		return
	}
	closed := make(chan struct{})
	go func() {
		closeAll(fds)
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
		s.log("Closing %d descriptors takes more than %s: it is not waited for", len(fds), closeTimeout)
	}
}

// end lets go of everything.
func (s *server) end() {
	s.mu.Lock()
	for p := range s.peers {
		_ = p.conn.Close()
	}
	s.mu.Unlock()
	s.openers.end()
	fds, items := s.kept.takeAll()
	s.log("Ending: %d descriptors of %d items are let go", len(fds), items)
	s.letGo(fds)
	s.wg.Wait() // each waits for closeTimeout at most
}

// credentials are the process at the other end, 0 if it is in a PID namespace that we
// don't see; an error unless it may be served.
func credentials(conn *net.UnixConn) (pid int32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return 0, err
	}
	if uid := int(cred.Uid); uid != 0 && uid != os.Geteuid() {
		return cred.Pid, fmt.Errorf("%w: user %d is neither root nor that of the holder", ErrRefused, uid)
	}
	return cred.Pid, nil
}
