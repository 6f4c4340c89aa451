package engine

import (
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs/fusefs"
)

const (
	// longRead is the age of a request from which on it is told of in the log.
	longRead = 30 * time.Second
	// watchEach is how often requests are looked at.
	watchEach = 10 * time.Second
	// maxFailed is how many requests that failed are told of in that time.
	maxFailed = 10
)

// pace says from which age on a request is told of, and how often requests are looked at.
type pace struct{ long, each time.Duration }

// watchReads logs requests that are under way for long, each once, and some of those that
// fail, until the engine is closed.
func (e *Engine) watchReads(p pace) {
	told := make(map[[2]int64]bool)
	tick := time.NewTicker(p.each)
	defer tick.Stop()
	failed := 0
	for {
		failures := fusefs.Failures()
		if failed == maxFailed {
			failures = nil
		}
		select {
		case <-e.ctx.Done():
			return
		case f := <-failures:
			failed++
			e.tellOfFailure(f)
		case <-tick.C:
			failed = 0
			told = e.tellOf(fusefs.LongReads(p.long), told)
		}
	}
}

func (e *Engine) tellOfFailure(f fusefs.Failure) {
	log := klog.FromContext(e.ctx).WithValues("domain", f.Domain, "offset", f.Offset, "size", f.Size)
	if f.File != nil {
		log = log.WithValues("file", f.File.Path, "images", e.imagesOf(f.File))
	}
	log.Error(f.Err, "A read failed")
}

// tellOf logs requests that are not among those that were told of, and returns those that
// are now.
func (e *Engine) tellOf(list []fusefs.LongRead, told map[[2]int64]bool) map[[2]int64]bool {
	now := make(map[[2]int64]bool, len(list))
	for _, l := range list {
		now[l.ID] = true
		if told[l.ID] {
			continue
		}
		log := klog.FromContext(e.ctx).WithValues("domain", l.Domain, "age", l.Age.Round(time.Second))
		if l.File != nil {
			log = log.WithValues("file", l.File.Path, "bytes", l.File.Size, "images", e.imagesOf(l.File))
		}
		log.Error(nil, "A read waits for long: where its image is does not answer")
	}
	return now
}

// imagesOf names the images of a file, as they were asked for.
func (e *Engine) imagesOf(file *fusefs.NodeUse) (list []string) {
	for _, f := range e.fronts.snapshot() {
		for _, m := range file.Files {
			if m.Member == f.member && !slices.Contains(list, f.reference) {
				list = append(list, f.reference)
			}
		}
	}
	return list
}
