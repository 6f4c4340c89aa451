package holder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// lock takes the lock of the socket at path: a file beside it, which stays.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err == nil {
		var lockErr error
		err = raw.Control(func(fd uintptr) {
			lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB)
		})
		if errors.Is(lockErr, unix.EWOULDBLOCK) {
			lockErr = fmt.Errorf("%w: %s", ErrInUse, path)
		}
		err = errors.Join(err, lockErr)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// listen makes the socket, in place of one that nobody listens on. It has its mode
// when its name appears.
func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if longest := len(unix.RawSockaddrUnix{}.Path) - 1 - len(".new"); len(path) > longest {
		return nil, fmt.Errorf("socket %s: a path may have %d bytes, this one has %d", path, longest, len(path))
	}
	if err := replaceable(ctx, path); err != nil {
		return nil, err
	}
	made := path + ".new"
	if err := os.Remove(made); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: made})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(made, 0o600)
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(made)
		return nil, err
	}
	return l, nil
}

// replaceable tells by an error that something is at path that is not a dead socket.
func replaceable(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is in the way: it is no socket", path)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", path)
	if err == nil {
		_ = conn.Close()
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	// It listens, if not for packets or not for us.
	return fmt.Errorf("%w: %s", ErrInUse, path)
}
