package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
)

// stopTimeout bounds the wait for running calls at shutdown. Kubelet repeats
// what is cut off.
const stopTimeout = 10 * time.Second

// socketTempSuffix marks a socket that nobody is to connect to yet. Kubelet's
// plugin watcher ignores names that begin with a dot.
const socketTempPrefix, socketTempSuffix = ".", ".new"

// listen listens on a unix socket that only root can connect to. The socket
// appears at path by rename(2), complete with its mode, in place of the one
// that an earlier process left; so there is no moment in which another user
// could connect, and none without a socket. A directory that does not exist is
// made, for root only.
func listen(ctx context.Context, path string) (net.Listener, error) {
	dir, base := filepath.Split(path)
	temp := filepath.Join(dir, socketTempPrefix+base+socketTempSuffix)
	if len(temp) > maxSocketPath {
		return nil, fmt.Errorf("socket path %s is too long: at most %d bytes", path, maxSocketPath-len(temp)+len(path))
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s exists and is no socket: remove it or name another endpoint", path)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", temp)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it would unlink temp
	err = os.Chmod(temp, 0o600)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temp))
	}
	return l, nil
}

// serve serves on a unix socket until ctx ends, then lets the running calls
// end, for stopTimeout at most, and removes the socket. Those of around see each
// call with the error that the caller gets.
func serve(ctx context.Context, path string, register func(*grpc.Server), around ...grpc.UnaryServerInterceptor) error {
	logger := klog.FromContext(ctx)
	l, err := listen(ctx, path)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", path, err)
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(append(around, intercept(logger))...))
	register(server)
	logger.V(2).Info("Serving", "socket", path)

	stopped := make(chan struct{})
	end := context.AfterFunc(ctx, func() {
		defer close(stopped)
		force := time.AfterFunc(stopTimeout, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	})
	err = server.Serve(l)
	if !end() {
		<-stopped
	}
	if err != nil {
		return fmt.Errorf("serving on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	logger.V(2).Info("Stopped serving", "socket", path)
	return nil
}
