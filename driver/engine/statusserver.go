package engine

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// statusTimeout bounds one exchange on the status socket.
const statusTimeout = 10 * time.Second

// maxQuery bounds a query in bytes.
const maxQuery = 64 << 10

// query is what a client of the status socket asks for, in JSON.
type query struct {
	Domain *string `json:"domain,omitempty"` // only the domain of this name
	Volume *string `json:"volume,omitempty"` // only what this volume shows
	// Forget lets go of the images that no volume shows first.
	Forget bool `json:"forget,omitempty"`
}

// picks tells whether the query is for an image that these volumes show.
func (q query) picks(j *joined, volumes []string) bool {
	return (q.Domain == nil || *q.Domain == j.domain.name) &&
		(q.Volume == nil || slices.Contains(volumes, *q.Volume))
}

// statusServer answers each connection to a unix socket with the status in JSON of
// what the query there asks for, and closes it.
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
				e.serveQuery(conn)
			})
		}
	})
	return s, nil
}

// serveQuery answers one query. A client that goes away gets none.
func (e *Engine) serveQuery(conn io.ReadWriter) {
	var q query
	if err := json.NewDecoder(io.LimitReader(conn, maxQuery)).Decode(&q); err != nil {
		return
	}
	forgotten := 0
	if q.Forget {
		idle := e.idle.takeAll(q)
		forgotten = len(idle)
		if err := e.forget(idle); err != nil {
			klog.FromContext(e.ctx).Error(err, "Letting go of idle images left something behind")
		}
	}
	s := e.answer(q)
	s.Forgotten = forgotten
	_ = json.NewEncoder(conn).Encode(s)
}

func (s *statusServer) close() {
	_ = s.listener.Close()
	s.wg.Wait()
}
