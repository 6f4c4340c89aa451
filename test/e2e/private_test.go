package e2e

import (
	"context"
	"crypto/subtle"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	user     = "robot"
	password = "right"
)

// private is a registry that wants credentials: E2E_REGISTRY, behind this process, which
// asks for user and password.
type private struct {
	host   string // as nodes name it
	let    atomic.Int64
	slow   atomic.Int64 // bytes of slowName's blobs that were sent
	way    sync.Mutex   // one of them is sent at a time
	server *http.Server
}

const (
	// slowName of an image has its blobs sent at slowRate, in bytes a second and for all
	// requests together.
	slowName = "slow"
	slowRate = 256 << 10
)

// slowly sends at slowRate, and counts.
type slowly struct {
	http.ResponseWriter
	to *private
}

func (w slowly) Write(p []byte) (n int, err error) {
	const piece = slowRate / 8
	for n < len(p) && err == nil {
		var m int
		w.to.way.Lock()
		m, err = w.ResponseWriter.Write(p[n:min(n+piece, len(p))])
		time.Sleep(time.Second * time.Duration(m) / slowRate)
		w.to.way.Unlock()
		n += m
		w.to.slow.Add(int64(m))
	}
	return n, err
}

// startPrivate listens at E2E_PRIVATE_REGISTRY, if that is set.
func (r *run) startPrivate(ctx context.Context) error {
	host := os.Getenv("E2E_PRIVATE_REGISTRY")
	if host == "" {
		return nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", host)
	if err != nil {
		return err
	}
	p := &private{host: host}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.registry})
	p.server = &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			u, pw, ok := req.BasicAuth()
			if !ok || u != user || subtle.ConstantTimeCompare([]byte(pw), []byte(password)) != 1 {
				w.Header().Set("WWW-Authenticate", `Basic realm="e2e"`)
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
				return
			}
			p.let.Add(1)
			req.Header.Del("Authorization")
			if strings.Contains(req.URL.Path, "/"+slowName+"/blobs/") {
				w = slowly{w, p}
			}
			proxy.ServeHTTP(w, req)
		}),
	}
	go func() { _ = p.server.Serve(listener) }()
	r.private = p
	return nil
}

// ref is a reference of E2E_REGISTRY as one of the private registry.
func (p *private) ref(r *run, ref string) string { return p.host + strings.TrimPrefix(ref, r.registry) }

func (p *private) close() error { return p.server.Close() }
