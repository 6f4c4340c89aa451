package metrics

import (
	"context"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

func newRPCs() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: prefix + "rpc_duration_seconds",
		Help: "Duration of CSI calls.",
		// From a call that is repeated to kubelet's timeout of two minutes.
		Buckets: []float64{0.001, 0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 120},
	}, []string{"method", "code"})
}

// Observe is a grpc.UnaryServerInterceptor that counts calls and how long they take.
// It sees only methods that there are, so their number is bounded.
func (m *Metrics) Observe(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	res, err := handler(ctx, req)
	m.rpcs.WithLabelValues(path.Base(info.FullMethod), status.Code(err).String()).Observe(time.Since(start).Seconds())
	return res, err
}
