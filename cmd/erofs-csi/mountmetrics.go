package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/metrics"
	"github.com/erofs-csi/erofs-csi/driver/supervise"
)

// sampleTimeout bounds what another process is asked for a sample.
const sampleTimeout = 20 * time.Second

func addMetricsAddress(flags *pflag.FlagSet, p *string) {
	flags.StringVar(p, "metrics-address", "", "`HOST:PORT`, or :PORT, to serve metrics for Prometheus at, without authentication (default: none)")
}

// serveMetrics serves the metrics of the mount command until ctx ends.
func (s *mountServer) serveMetrics(ctx context.Context, address string) {
	status := statusByChild(s.flags.stateDir)
	source := metrics.Source{
		Version: releaseName(), Ready: s.ready.Load,
		Deaths: supervise.Deaths(), Store: s.store.Counts, Engine: s.engine.Counts, Volumes: s.byFront,
		Sample: func(ctx context.Context) (got metrics.Sample, err error) {
			usage, usageErr := s.store.Usage()
			if usageErr == nil {
				got.Usage = &usage
			}
			ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
			defer cancel()
			list, err := status(ctx)
			if i := slices.IndexFunc(list, func(e engine.Status) bool { return e.PID == os.Getpid() }); i >= 0 {
				got.Domains = append([]engine.DomainStatus{}, list[i].Domains...)
			}
			return got, errors.Join(usageErr, err)
		},
	}
	if s.holder != nil {
		source.Holder = s.holder.Status
	}
	go metrics.New(ctx, source).Serve(ctx, address)
}

// byFront counts what is mounted by front. Every front that there is has a number.
func (s *mountServer) byFront() map[string]int {
	n := map[string]int{engine.FrontKernel: 0}
	for _, front := range engine.Fronts {
		if front != engine.FrontAuto {
			n[front] = 0
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mounted {
		n[m.front.Kind()]++
	}
	return n
}
