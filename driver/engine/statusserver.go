package engine

import (
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// statusTimeout bounds one exchange on the status socket.
const statusTimeout = 10 * time.Second

// statusServer answers each connection to a unix socket with the status in JSON,
// and closes it.
type statusServer struct {
	listener net.Listener
	wg       sync.WaitGroup
}

func (e *Engine) serveStatus(path string) (*statusServer, error) {
	l, err := (&net.ListenConfig{}).Listen(e.ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	s := &statusServer{listener: l}
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(statusTimeout))
				_ = json.NewEncoder(conn).Encode(e.Status()) // a client that went away
			})
		}
	})
	return s, nil
}

func (s *statusServer) close() {
	_ = s.listener.Close()
	s.wg.Wait()
}
