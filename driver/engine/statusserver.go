package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// statusTimeout bounds how long either end of the status socket waits for the other.
const statusTimeout = 10 * time.Second

// maxQuery bounds a query in bytes.
const maxQuery = 64 << 10

// query is what a client of the status socket asks for, in JSON.
type query struct {
	Domain *string `json:"domain,omitempty"` // only the domain of this name
	Volume *string `json:"volume,omitempty"` // only what this volume shows
	// Forget lets go of the images that no volume shows first.
	Forget bool `json:"forget,omitempty"`
	// All lists every file that may have pages, not only a sample.
	All bool `json:"all,omitempty"`
	// Cache asks for something else: one CacheAnswer.
	Cache *CacheQuery `json:"cache,omitempty"`
}

// picks tells whether the query is for an image that these volumes show.
func (q query) picks(j *joined, volumes []string) bool { return q.asksFor(j.domain.name, volumes) }

func (q query) asksFor(domain string, volumes []string) bool {
	return (q.Domain == nil || *q.Domain == domain) &&
		(q.Volume == nil || slices.Contains(volumes, *q.Volume))
}

// statusServer answers each connection to a unix socket with what the query there
// asks for, and closes it: the status, a line of JSON, then a line for each file that
// may have pages. It keeps none of the lines, however many they are.
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
				// The end of the engine waits for nobody who reads slowly.
				defer context.AfterFunc(e.ctx, func() { _ = conn.Close() })()
				e.serveQuery(patient{conn})
			})
		}
	})
	return s, nil
}

// patient is a connection of which each read and write may take statusTimeout.
type patient struct{ net.Conn }

func (p patient) Read(b []byte) (int, error) {
	_ = p.SetReadDeadline(time.Now().Add(statusTimeout))
	return p.Conn.Read(b)
}

func (p patient) Write(b []byte) (int, error) {
	_ = p.SetWriteDeadline(time.Now().Add(statusTimeout))
	return p.Conn.Write(b)
}

// serveQuery answers one query. A client that goes away gets none.
func (e *Engine) serveQuery(conn io.ReadWriter) {
	var q query
	if err := json.NewDecoder(io.LimitReader(conn, maxQuery)).Decode(&q); err != nil {
		return
	}
	if q.Cache != nil {
		_ = json.NewEncoder(conn).Encode(e.answerCache(*q.Cache)) // a client that is gone needs none
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
	s, domains := e.account(q)
	s.Forgotten = forgotten
	s.Images = e.imageStore()
	samples := make([][]picked, len(domains))
	if !q.All {
		for i, d := range domains {
			var all bool
			samples[i], all = sample(maxSampled, d.each)
			s.Domains[i].Sampled = !all
		}
	}
	out := bufio.NewWriterSize(conn, 64<<10)
	lines := json.NewEncoder(out)
	err := lines.Encode(s)
	for i, d := range domains {
		send := func(id uint64, weight float64) bool {
			if e.ctx.Err() != nil {
				return false
			}
			if n, ok := d.node(id); ok && err == nil {
				n.Domain, n.Weight = i, weight
				err = lines.Encode(n)
			}
			return err == nil
		}
		for _, p := range samples[i] {
			send(p.id, p.weight)
		}
		if q.All {
			d.each(func(id uint64, _ int64) bool { return send(id, 0) })
		}
	}
	if err == nil {
		_ = out.Flush()
	}
}

func (s *statusServer) close() {
	_ = s.listener.Close()
	s.wg.Wait()
}
