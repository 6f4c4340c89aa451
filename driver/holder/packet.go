package holder

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// packets is a connection, with a buffer for what comes. Not for concurrent use, but
// for one that reads beside one that writes.
type packets struct {
	conn *net.UnixConn
	in   [maxMessage + 1]byte // a byte more, so that a packet of maxMessage is whole
	oob  []byte
}

func newPackets(conn *net.UnixConn) *packets {
	// One descriptor more than there may be: too many are then seen by their number.
	return &packets{conn: conn, oob: make([]byte, unix.CmsgSpace(4*(MaxFiles+1)))}
}

// receive reads one message with its descriptors, which are closed on exec and the
// caller's, also with an error.
//
// Errors: those of the connection; ErrProtocol, after which the next message can be
// read.
func (p *packets) receive(m *message) ([]int, error) {
	n, oobn, flags, _, err := p.conn.ReadMsgUnix(p.in[:], p.oob)
	fds, oobErr := descriptors(p.oob[:max(oobn, 0)])
	if err != nil {
		return fds, err // an empty packet is an EOF, and may have descriptors
	}
	if err := m.decode(p.in[:n]); err != nil {
		return fds, err
	}
	switch {
	case oobErr != nil:
		return fds, fmt.Errorf("%w: %w", ErrProtocol, oobErr)
	case flags&unix.MSG_TRUNC != 0:
		return fds, fmt.Errorf("%w: message longer than %d bytes", ErrProtocol, maxMessage)
	case flags&unix.MSG_CTRUNC != 0 || len(fds) > MaxFiles:
		return fds, fmt.Errorf("%w: descriptors were lost: they are more than %d, or than this process may have open, or a security module refuses them", ErrLimit, MaxFiles)
	case carries(m.kind) && len(fds) != int(m.files), !carries(m.kind) && len(fds) > 0:
		return fds, fmt.Errorf("%w: %d descriptors came with message %d, %d were announced", ErrProtocol, len(fds), m.kind, m.files)
	}
	return fds, nil
}

func carries(k kind) bool {
	return k == kindPut || k == kindItem || k == kindOpen || k == kindOpened
}

// send writes one message with descriptors. It waits for the other end to read, until
// the timeout.
func (p *packets) send(m *message, timeout time.Duration, fds ...int) error {
	packet, err := m.encode()
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := p.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, _, err = p.conn.WriteMsgUnix(packet, oob, nil)
	return err
}

// descriptors finds them in control messages; it returns all there are, also with an
// error.
func descriptors(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		some, someErr := unix.ParseUnixRights(&m)
		fds = append(fds, some...)
		err = errors.Join(err, someErr)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// withDescriptors calls fn with the files' descriptors, none of which is closed or
// set to block meanwhile.
//
// Errors: os.ErrClosed, os.ErrInvalid for a nil file, and those of fn.
func withDescriptors(files []*os.File, fds []int, fn func([]int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err // os.ErrInvalid
	}
	var fnErr error
	err = raw.Control(func(fd uintptr) {
		fnErr = withDescriptors(files[1:], append(fds, int(fd)), fn)
	})
	if err != nil {
		return fmt.Errorf("%w: %w", os.ErrClosed, err)
	}
	return fnErr
}
