package metrics

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// Bounds of the server.
const (
	answerTimeout = 10 * time.Second // of one answer; Prometheus gives up then, too
	maxScrapes    = 3                // at once
	maxHeaders    = 16 << 10         // bytes of a request's headers
	listenAgain   = 10 * time.Second // after an address was not to be had
)

// handler answers GET /metrics.
func (m *Metrics) handler(logger klog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog:            scrapeErrors{logger},
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             answerTimeout,
	}))
	return mux
}

// scrapeErrors logs what went wrong in a scrape.
type scrapeErrors struct{ logger klog.Logger }

func (e scrapeErrors) Println(v ...any) {
	e.logger.Info("A scrape of metrics failed in part", "reason", v)
}

// Serve serves at a TCP address until ctx ends. An address that is not to be had is
// no reason to end the mounts of the node: it is logged and tried again.
func (m *Metrics) Serve(ctx context.Context, address string) {
	logger := klog.FromContext(ctx)
	for ctx.Err() == nil {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err == nil {
			logger.V(2).Info("Serving metrics", "address", l.Addr().String())
			err = m.serveOn(ctx, l)
		}
		if ctx.Err() != nil {
			return
		}
		logger.Error(err, "Cannot serve metrics; trying again", "address", address, "after", listenAgain)
		select {
		case <-time.After(listenAgain):
		case <-ctx.Done():
		}
	}
}

// serveOn serves until ctx ends or the listener fails.
func (m *Metrics) serveOn(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           m.handler(klog.FromContext(ctx)),
		ReadHeaderTimeout: answerTimeout,
		ReadTimeout:       answerTimeout,
		WriteTimeout:      2 * answerTimeout, // of the making and the sending
		IdleTimeout:       5 * time.Minute,   // longer than from scrape to scrape
		MaxHeaderBytes:    maxHeaders,
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	return server.Serve(l)
}
