package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// prefix is that of all metrics of the project.
const prefix = "erofs_csi_"

// Source is a node to tell of. Its functions are called concurrently, each one at a time,
// and but for Sample they are quick: one that takes longer than two seconds is missing in
// an answer.
type Source struct {
	Version string
	Ready   func() bool
	// Deaths is how often the process died before it was started.
	Deaths int
	Store  func() nodecache.Counts
	Engine func() engine.Counts
	// Holder tells how the process stands with its holder; nil: there is to be none.
	Holder func() holder.Status
	// Volumes are their numbers by front.
	Volumes func() map[string]int
	// Sample takes a sample, and its error is of the parts that are missing. It may
	// take its time. It is called for one sample at a time.
	Sample func(context.Context) (Sample, error)
}

// Sample is what is asked of a node less often than there are scrapes. What is nil
// could not be had.
type Sample struct {
	Usage   *nodecache.Usage
	Domains []engine.DomainStatus // not nil if there are none
	// Unhealthy are volumes by what is wrong with them; every reason that there is has
	// a number.
	Unhealthy map[string]int

	taken time.Time
	took  time.Duration
}

// Metrics are those of a node.
type Metrics struct {
	registry *prometheus.Registry
	rpcs     *prometheus.HistogramVec
}

// New makes the metrics of a node. What takes samples ends with ctx, whose logger it
// uses.
func New(ctx context.Context, src Source) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), rpcs: newRPCs()}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.rpcs,
		newCollector(src, &sampler{ctx: ctx, take: src.Sample}),
	)
	return m
}
