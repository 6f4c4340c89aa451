package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// State is what another process must know of a session to go on with it, beside the
// descriptor of /dev/fuse and the ledgers: what the kernel and its server said when
// they met, once for the session's whole life.
type State struct {
	Init  []byte `json:"init"`  // the kernel's INIT request
	Reply []byte `json:"reply"` // the answer
}

// ErrOtherSession says that this release would serve a session in another way than the
// one that began it, so that it must not go on with it.
var ErrOtherSession = errors.New("the session was begun by a release that this one cannot take over from")

const (
	// minRead is the least that may be read at a time from /dev/fuse, in bytes
	// (FUSE_MIN_READ_BUFFER).
	minRead = 8192

	initOp      = 26 // FUSE_INIT
	inHeader    = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeader   = int(unsafe.Sizeof(fuse.OutHeader{}))
	initOutSize = int(unsafe.Sizeof(fuse.InitOut{}))
)

// State is what is needed with Channel to take the session over: see Resume.
func (m *Mount) State() State { return m.state }

// Channel is /dev/fuse. The session lives as long as somebody has it open, whether or
// not requests are answered. It is closed when the session ends.
func (m *Mount) Channel() *os.File { return m.channel }

// begin starts a server on a new session, and answers the kernel's INIT.
func (m *Mount) begin(fs fuse.RawFileSystem, options *fuse.MountOptions) error {
	buf := make([]byte, minRead)
	n, err := unix.Read(int(m.channel.Fd()), buf)
	if err != nil {
		return fmt.Errorf("read INIT: %w", err)
	}
	m.state.Init = bytes.Clone(buf[:n])
	if err := m.meet(fs, options); err != nil {
		return err
	}
	if _, err := unix.Write(int(m.channel.Fd()), m.state.Reply); err != nil {
		return fmt.Errorf("answer INIT: %w", err)
	}
	return nil
}

// meet starts a server that gets the session's INIT from a socket, keeps what it answers,
// and puts the session's channel into the socket's place.
func (m *Mount) meet(fs fuse.RawFileSystem, options *fuse.MountOptions) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket for INIT: %w", err)
	}
	defer func() { _ = unix.Close(pair[1]) }()
	if _, err := unix.Write(pair[1], m.state.Init); err != nil {
		_ = unix.Close(pair[0])
		return fmt.Errorf("socket for INIT: %w", err)
	}
	server, err := fuse.NewServer(fs, "/dev/fd/"+strconv.Itoa(pair[0]), options)
	if err != nil {
		return err // it has closed its end
	}
	if err := prefault(server); err != nil {
		return err
	}
	buf := make([]byte, minRead)
	n, err := unix.Read(pair[1], buf)
	if err != nil || n < outHeader+initOutSize {
		return fmt.Errorf("answer to INIT of %d bytes: %w", n, err)
	}
	if err := unix.Dup3(int(m.channel.Fd()), pair[0], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("put /dev/fuse into the socket's place: %w", err)
	}
	m.fd, m.server, m.state.Reply = pair[0], server, bytes.Clone(buf[:n])
	if m.keeping == nil || m.resends() && !m.keeping.always {
		return nil
	}
	m.own, err = newJournaled(fs, options, m.fd, m.state.Init, m.keeping)
	if err != nil {
		m.discard()
	}
	return err
}

// discard ends a server without the session. It has m.fd, which nobody else may close.
func (m *Mount) discard() {
	if null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Dup3(null, m.fd, unix.O_CLOEXEC)
		_ = unix.Close(null)
	}
	m.server.Serve() // it finds nothing to read
}

// Resume goes on with a session that Serve or Resume began in another process, which is
// gone: channel and state are those of its Mount, and its mount is at dir. Requests that
// it had and did not answer come again: from the kernel where it can send them again
// (Linux 6.9), else from the file of FS.Keep. See also Lost.
//
// fs must be one of Recall. Its requests wait until fs.Load. The channel is taken over,
// also after an error.
func Resume(fs *FS, dir string, channel *os.File, state State) (*Mount, error) {
	m, err := resume(&gated{fs, fs.loaded}, contentOptions(), fs.keeping, dir, channel, state)
	if err != nil {
		return nil, err
	}
	go fs.keepCap(m.served)
	return m, nil
}

// ResumePassthrough is Resume for a Passthrough.
func ResumePassthrough(ctx context.Context, p *Passthrough, dir string, channel *os.File, state State) (*Mount, error) {
	m, err := resume(&gated{p, p.loaded}, passthroughOptions(), nil, dir, channel, state)
	if err != nil {
		return nil, err
	}
	if err := p.start(m); err != nil {
		return nil, errors.Join(err, m.Unmount(ctx))
	}
	return m, nil
}

func resume(fs fuse.RawFileSystem, options *fuse.MountOptions, keeping *requestKeeping, dir string, channel *os.File, state State) (_ *Mount, err error) {
	m := &Mount{dir: dir, channel: channel, state: State{Init: state.Init}, keeping: keeping, served: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = channel.Close()
			err = fmt.Errorf("resume the FUSE session of %s: %w", dir, err)
		}
	}()
	then, err := parseReply(state)
	if err != nil {
		return nil, err
	}
	// What another release would ask for.
	options.DisabledCapabilities |= ^then.Flags64()
	options.MaxWrite, options.MaxStackDepth = int(then.MaxWrite), int(then.MaxStackDepth)
	if err := m.meet(fs, options); err != nil {
		return nil, err
	}
	now, err := parseReply(m.state)
	if err == nil && (now.Flags64() != then.Flags64() || now.MaxWrite != then.MaxWrite) {
		err = fmt.Errorf("%w: flags %#x and writes of %d, then %#x and %d", ErrOtherSession, now.Flags64(), now.MaxWrite, then.Flags64(), then.MaxWrite)
	}
	if err != nil {
		m.discard()
		return nil, err
	}
	if err := m.identify(); err != nil {
		m.discard()
		return nil, err
	}
	m.state.Reply = state.Reply
	if m.own == nil && m.resends() {
		if err := m.resend(); err != nil {
			m.discard()
			return nil, err
		}
	}
	m.serve()
	if m.own != nil {
		go m.watch()
	}
	return m, nil
}

// parseReply takes the answer to INIT apart, and checks both sides of it.
func parseReply(s State) (fuse.InitOut, error) {
	if len(s.Init) < inHeader || len(s.Reply) < outHeader+initOutSize {
		return fuse.InitOut{}, fmt.Errorf("%w: INIT of %d bytes, answer of %d", ErrOtherSession, len(s.Init), len(s.Reply))
	}
	if op := (*fuse.InHeader)(unsafe.Pointer(&s.Init[0])).Opcode; op != initOp {
		return fuse.InitOut{}, fmt.Errorf("%w: request %d in place of INIT", ErrOtherSession, op)
	}
	if h := (*fuse.OutHeader)(unsafe.Pointer(&s.Reply[0])); h.Status != 0 {
		return fuse.InitOut{}, fmt.Errorf("%w: INIT was answered with error %d", ErrOtherSession, h.Status)
	}
	return *(*fuse.InitOut)(unsafe.Pointer(&s.Reply[outHeader])), nil
}

// resends tells whether the kernel can send requests again.
func (m *Mount) resends() bool { return m.server.KernelSettings().Flags64()&fuse.CAP_HAS_RESEND != 0 }

// resend has the kernel send all requests again that are not answered.
func (m *Mount) resend() error {
	h := fuse.OutHeader{Length: uint32(outHeader), Status: -fuse.NOTIFY_RESEND}
	if _, err := unix.Write(int(m.channel.Fd()), unsafe.Slice((*byte)(unsafe.Pointer(&h)), outHeader)); err != nil {
		return fmt.Errorf("have requests sent again: %w", err)
	}
	return nil
}
