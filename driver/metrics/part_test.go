package metrics

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// gathered are the values of metrics without labels.
func gathered(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		if m := f.GetMetric()[0]; len(m.GetLabel()) == 0 {
			got[strings.TrimPrefix(f.GetName(), prefix)] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return got
}

// A part that hangs costs its metrics, and a scrape no more than partWait; there is one
// question at a time, whose answer is taken when it comes.
func TestHangingPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		hang := make(chan struct{})
		src := node()
		src.Engine = func() engine.Counts {
			asked.Add(1)
			<-hang
			return engine.Counts{Lost: 3}
		}
		r := prometheus.NewRegistry()
		r.MustRegister(newCollector(src, &sampler{ctx: t.Context(), take: src.Sample}))
		for range 3 {
			start := time.Now()
			got := gathered(t, r)
			if took := time.Since(start); took != partWait {
				t.Errorf("the scrape took %v, want %v", took, partWait)
			}
			if _, there := got["lost_mounts_total"]; there || got["ready"] != 1 || got["unanswered_parts"] != 1 {
				t.Errorf("got %v; want all but what the engine counts", got)
			}
			if _, there := got["blob_transfers"]; !there {
				t.Errorf("got %v, without the image store", got)
			}
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("the engine was asked %d times while it hung, want once", n)
		}
		time.AfterFunc(partWait/2, func() { close(hang) })
		if got := gathered(t, r); got["lost_mounts_total"] != 3 || got["unanswered_parts"] != 0 {
			t.Errorf("got %v of an engine that answers again", got)
		}
		if got := gathered(t, r); got["lost_mounts_total"] != 3 || asked.Load() != 2 {
			t.Errorf("got %v, asked %d times", got, asked.Load())
		}
	})
}

// GET /metrics is answered while the engine hangs, also to more than may ask at once.
func TestAnswerWhileEngineHangs(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	src := node()
	src.Engine = func() engine.Counts {
		<-hang
		return engine.Counts{}
	}
	_, url := serve(t, src)
	codes := make(chan int)
	start := time.Now()
	for range maxScrapes + 1 {
		go func() {
			code, text := get(t, url+"/metrics")
			if code == http.StatusOK && !strings.Contains(text, "\nerofs_csi_unanswered_parts 1\n") {
				t.Errorf("200 without a word of what is missing: %s", text)
			}
			codes <- code
		}()
	}
	answered := 0
	for range maxScrapes + 1 {
		switch code := <-codes; code {
		case http.StatusOK:
			answered++
		case http.StatusServiceUnavailable: // too many at once
		default:
			t.Errorf("status %d", code)
		}
	}
	if took := time.Since(start); answered < maxScrapes || took > answerTimeout {
		t.Errorf("%d of %d scrapes were answered with metrics, within %v", answered, maxScrapes+1, took)
	}
	if code, text := get(t, url+"/metrics"); code != http.StatusOK || !strings.Contains(text, "\nerofs_csi_ready 1\n") {
		t.Errorf("the scrape after those: %d", code)
	}
}
