package nodecache

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands before a registry and does to its answers what a test wants.
type proxy struct {
	host   string
	server *httptest.Server
	to     *http.Transport
	stop   sync.Once
	proxyLog
}

// proxyLog keeps what a server was asked, and what it does instead of answering.
type proxyLog struct {
	blobBytes atomic.Int64 // of bodies of blobs that went through

	mu       sync.Mutex
	requests []*http.Request // GUARDED_BY(mu)
	// fault may answer a request itself, and then returns true. GUARDED_BY(mu)
	fault func(w http.ResponseWriter, r *http.Request) bool
}

// answer notes a request and reports whether the fault answered it.
func (p *proxyLog) answer(w http.ResponseWriter, r *http.Request) bool {
	p.mu.Lock()
	p.requests = append(p.requests, r)
	fault := p.fault
	p.mu.Unlock()
	return fault != nil && fault(w, r)
}

func newProxy(t testing.TB, host string) *proxy {
	t.Helper()
	p := &proxy{to: &http.Transport{DisableCompression: true}}
	back := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	back.Transport = p.to
	p.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w = &countingWriter{ResponseWriter: w, count: &p.blobBytes}
		}
		if !p.answer(w, r) {
			back.ServeHTTP(w, r)
		}
	}))
	p.host = p.server.Listener.Addr().String()
	t.Cleanup(p.close)
	return p
}

// countingWriter counts the bytes of a body.
type countingWriter struct {
	http.ResponseWriter
	count *atomic.Int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.count.Add(int64(n))
	return n, err
}

func (w *countingWriter) Flush() { w.ResponseWriter.(http.Flusher).Flush() }

func (p *proxy) close() {
	p.stop.Do(func() {
		p.server.CloseClientConnections()
		p.server.Close()
		p.to.CloseIdleConnections()
	})
}

func (p *proxyLog) set(fault func(w http.ResponseWriter, r *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.requests = fault, nil
	p.blobBytes.Store(0)
}

func (p *proxyLog) count() int { return len(p.seen("")) }

// seen are the requests whose path holds part.
func (p *proxyLog) seen(part string) []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*http.Request
	for _, r := range p.requests {
		if strings.Contains(r.URL.Path, part) {
			all = append(all, r)
		}
	}
	return all
}

// onBlobs limits a fault to requests for blobs, onManifests to manifests.
func onBlobs(f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
	return onPath("/blobs/", f)
}

func onManifests(f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
	return onPath("/manifests/", f)
}

func onPath(part string, f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		f(w, r)
		return true
	}
}

// quiet is a log that nobody reads.
var quiet = log.New(io.Discard, "", 0)
