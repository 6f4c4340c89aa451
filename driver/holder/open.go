package holder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/apart"
)

// A connection whose first request after the hello is kindOpen has no other requests. A
// thread of its own serves it, because an open(2) waits for whoever serves the file
// system: an engine, which asks for it, or, when that is killed meanwhile, its successor.
// The thread has no part in what the holder keeps: see package apart.

// maxOpeners bounds those connections.
const maxOpeners = 32

// errNotOpener ends the goroutine of a connection that has its thread now.
var errNotOpener = errors.New("a thread has the connection")

// becomeOpener hands the connection to a thread. The error is never nil.
func (p *peer) becomeOpener(first *message, fds []int) error {
	if p.name != "" {
		return fmt.Errorf("%w: it has a name", ErrProtocol)
	}
	conn, err := p.conn.File() // another descriptor, that blocks
	if err != nil {
		return err
	}
	if err := p.server.openers.add(conn); err != nil {
		_ = conn.Close()
		return err
	}
	m := *first
	begun := make(chan struct{})
	go func() {
		defer p.server.openers.remove(conn)
		err := apart.Run(func() error {
			close(begun)
			serveOpens(int(conn.Fd()), &m, fds[0])
			return nil
		}, int(conn.Fd()), fds[0])
		if err != nil {
			p.server.log("A client, process %d, can't have files opened: %v", p.pid, err)
			close(begun)
		}
	}()
	<-begun // it has descriptors of its own
	return errNotOpener
}

// openerSet is the connections whose threads open files.
type openerSet struct {
	mu    sync.Mutex
	ended bool              // GUARDED_BY(mu)
	conns map[*os.File]bool // GUARDED_BY(mu)
}

func (o *openerSet) add(conn *os.File) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended || len(o.conns) >= maxOpeners {
		return fmt.Errorf("%w: more than %d clients that open", ErrLimit, maxOpeners)
	}
	if o.conns == nil {
		o.conns = make(map[*os.File]bool)
	}
	o.conns[conn] = true
	return nil
}

func (o *openerSet) remove(conn *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, conn)
	_ = conn.Close()
}

// end has the threads end when they have answered.
func (o *openerSet) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	for conn := range o.conns {
		_ = unix.Shutdown(int(conn.Fd()), unix.SHUT_RDWR)
	}
}

// serveOpens answers requests on a socket that blocks, m first, until the other end goes.
func serveOpens(conn int, m *message, dir int) {
	defer func() { _ = unix.Close(conn) }()
	in, oob := make([]byte, maxMessage+1), make([]byte, unix.CmsgSpace(4*(MaxFiles+1)))
	for {
		answer, fd := open(m, dir)
		_ = unix.Close(dir)
		packet, err := answer.encode()
		if err == nil {
			var rights []byte
			if fd >= 0 {
				rights = unix.UnixRights(fd)
			}
			err = retry(func() error { return unix.Sendmsg(conn, packet, rights, nil, unix.MSG_NOSIGNAL) })
		}
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		if err != nil {
			return
		}
		var fds []int
		if fds, err = nextOpen(conn, in, oob, m); err != nil {
			closeAll(fds)
			return
		}
		dir = fds[0]
	}
}

// nextOpen waits for a request.
func nextOpen(conn int, in, oob []byte, m *message) (fds []int, err error) {
	var n, oobn, flags int
	err = retry(func() (err error) {
		n, oobn, flags, _, err = unix.Recvmsg(conn, in, oob, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err != nil {
		return nil, err
	}
	fds, err = descriptors(oob[:oobn])
	if n == 0 && err == nil {
		err = io.EOF
	}
	if err == nil {
		err = m.decode(in[:n])
	}
	if err == nil && (m.kind != kindOpen || len(fds) != 1 || m.files != 1 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0) {
		err = ErrProtocol
	}
	return fds, err
}

// open does what a request asks for. fd is -1 without one.
func open(m *message, dir int) (answer *message, fd int) {
	flags := unix.O_PATH
	if m.reads != 0 {
		flags = unix.O_RDONLY
	}
	err := retry(func() (err error) {
		fd, err = unix.Openat(dir, m.path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		return &message{kind: kindErrno, id: m.id, errno: uint32(errno)}, -1
	}
	return &message{kind: kindOpened, id: m.id, files: 1}, fd
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openConnections is how many files a client has opened at a time.
const openConnections = 2

// opener is a client's connections for Open.
type opener struct {
	path string
	free chan *openConn // openConnections of them, or nil where none is connected
	once sync.Once
}

type openConn struct {
	fd   int
	last uint32
	in   []byte
	oob  []byte
}

func (o *opener) init(path string) {
	o.once.Do(func() {
		o.path, o.free = path, make(chan *openConn, openConnections)
		for range openConnections {
			o.free <- nil
		}
	})
}

// close ends the connections; nothing must be opened any more.
func (o *opener) close() {
	o.init("")
	for range openConnections {
		if c := <-o.free; c != nil {
			_ = unix.Close(c.fd)
		}
		o.free <- nil
	}
}

// Open opens a file below a directory in the holder, by a relative path of at most 255
// bytes, with unix.O_PATH or unix.O_RDONLY. It waits as long as open(2) does; when this
// process is killed meanwhile, it is the holder that goes on waiting.
//
// Errors: bare errnos of open(2); ErrLost when the holder can't be asked.
func (c *Client) Open(dir *os.File, path string, flags int) (fd int, err error) {
	c.opener.init(c.path)
	conn := <-c.opener.free
	defer func() { c.opener.free <- conn }()
	for {
		isNew := conn == nil
		if isNew {
			if conn, err = c.opener.connect(); err != nil {
				return -1, fmt.Errorf("%w: %w", ErrLost, err)
			}
		}
		answer, fd, err := conn.open(dir, path, flags)
		switch {
		case err == nil && answer.kind == kindErrno:
			return -1, syscall.Errno(answer.errno)
		case err == nil:
			return fd, nil
		}
		_ = unix.Close(conn.fd)
		conn = nil
		if isNew { // else it may have been that of a holder that is gone
			return -1, fmt.Errorf("%w: %w", ErrLost, err)
		}
	}
}

// connect makes a connection whose descriptor blocks: an answer takes some microseconds,
// in which the network poller would take longer than it saves.
func (o *opener) connect() (*openConn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &openConn{fd: fd, in: make([]byte, maxMessage+1), oob: make([]byte, unix.CmsgSpace(4*(MaxFiles+1)))}
	if err = unix.Connect(fd, &unix.SockaddrUnix{Name: o.path}); err == nil {
		var answer message
		answer, _, err = c.ask(&message{kind: kindHello, lowest: minVersion, highest: maxVersion})
		if err == nil && answer.kind != kindHello {
			err = answer.err()
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func (c *openConn) open(dir *os.File, path string, flags int) (answer message, fd int, err error) {
	m := &message{kind: kindOpen, path: path, files: 1}
	if flags&unix.O_PATH == 0 {
		m.reads = 1
	}
	var fds []int
	err = withDescriptors([]*os.File{dir}, nil, func(dirs []int) (err error) {
		answer, fds, err = c.ask(m, dirs...)
		return err
	})
	if err != nil {
		return answer, -1, err
	}
	switch {
	case answer.kind == kindOpened && len(fds) == 1:
		return answer, fds[0], nil
	case answer.kind == kindErrno && len(fds) == 0 && answer.errno != 0:
		return answer, -1, nil
	case answer.kind == kindError:
		err = answer.err()
	default:
		err = fmt.Errorf("%w: answer %d to an open, with %d descriptors", ErrProtocol, answer.kind, len(fds))
	}
	closeAll(fds)
	return answer, -1, err
}

// ask sends a request and waits for its answer.
func (c *openConn) ask(m *message, fds ...int) (answer message, got []int, err error) {
	c.last++
	m.id = c.last
	packet, err := m.encode()
	if err != nil {
		return answer, nil, err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := retry(func() error { return unix.Sendmsg(c.fd, packet, rights, nil, unix.MSG_NOSIGNAL) }); err != nil {
		return answer, nil, err
	}
	var n, oobn int
	err = retry(func() (err error) {
		n, oobn, _, _, err = unix.Recvmsg(c.fd, c.in, c.oob, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err != nil {
		return answer, nil, err
	}
	got, err = descriptors(c.oob[:oobn])
	if n == 0 && err == nil {
		err = io.EOF
	}
	if err == nil {
		err = answer.decode(c.in[:n])
	}
	if err == nil && answer.id != m.id && answer.kind != kindError {
		err = fmt.Errorf("%w: answer to request %d, want %d", ErrProtocol, answer.id, m.id)
	}
	if err != nil {
		closeAll(got)
		got = nil
	}
	return answer, got, err
}
