package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/metrics"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

const (
	// sampleTimeout bounds what is asked of a disk or another process for a sample.
	sampleTimeout = 20 * time.Second
	// sampleParallel is how many volumes are looked at at once.
	sampleParallel = 8
)

// sampling is what samples of a node are taken from.
type sampling struct {
	store   *nodecache.Store
	volumes *volumeManager
	// readStatus is Config.ReadStatus.
	readStatus func(context.Context) ([]engine.Status, error)
	prober     *prober
}

// take is [metrics.Source.Sample]. Each of its parts is bounded, and of each that
// hangs there is one.
func (s *sampling) take(ctx context.Context) (got metrics.Sample, err error) {
	var errs [2]error
	var all sync.WaitGroup
	all.Go(func() {
		var usage nodecache.Usage
		if usage, errs[0] = ask(ctx, s.prober, "usage of the image store", s.store.Usage); errs[0] == nil {
			got.Usage = &usage
		}
	})
	all.Go(func() { got.Domains, errs[1] = s.domains(ctx) })
	got.Unhealthy = s.volumes.unhealthy(ctx)
	all.Wait()
	return got, errors.Join(errs[:]...)
}

// domains are those of this process, nil if nobody can tell.
func (s *sampling) domains(ctx context.Context) ([]engine.DomainStatus, error) {
	if s.readStatus == nil {
		return nil, nil
	}
	list, err := ask(ctx, s.prober, "status of the domains", func() ([]engine.Status, error) {
		ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
		defer cancel()
		return s.readStatus(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("status of the domains: %w", err)
	}
	i := slices.IndexFunc(list, func(e engine.Status) bool { return e.PID == os.Getpid() })
	if i < 0 {
		return nil, errors.New("status of the domains: this process is not in it")
	}
	return append([]engine.DomainStatus{}, list[i].Domains...), nil
}

// frontNone is the front of a volume that could not be rebuilt.
const frontNone = "none"

// byFront counts the volumes by front. Every front that there is has a number.
func (m *volumeManager) byFront() map[string]int {
	n := map[string]int{frontNone: 0, engine.FrontKernel: 0}
	for _, front := range engine.Fronts {
		if front != engine.FrontAuto {
			n[front] = 0
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.volumes {
		if v.front == nil {
			n[frontNone]++
		} else {
			n[v.front.Kind()]++
		}
	}
	return n
}

// unhealthy counts the volumes with which something is wrong, by reason. Every reason
// that there is has a number.
func (m *volumeManager) unhealthy(ctx context.Context) map[string]int {
	n := make(map[string]int)
	for _, reason := range healthReasons {
		n[reason] = 0
	}
	m.mu.Lock()
	ids := slices.Collect(maps.Keys(m.volumes))
	m.mu.Unlock()
	var mu sync.Mutex
	var all errgroup.Group
	all.SetLimit(sampleParallel)
	for _, id := range ids {
		all.Go(func() error {
			c, err := guard(ctx, func() (condition, error) {
				_, c, err := m.Health(ctx, id)
				return c, err
			})
			if err == nil && c.abnormal() { // an error: it is gone meanwhile
				mu.Lock()
				defer mu.Unlock()
				n[c.reason]++
			}
			return nil
		})
	}
	_ = all.Wait() // none fails
	return n
}
