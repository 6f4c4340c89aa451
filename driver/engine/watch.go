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
)

// watchReads logs requests that are under way for long, each once, until the engine is
// closed.
func (e *Engine) watchReads() {
	told := make(map[[2]int64]bool)
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(watchEach):
		}
		told = e.tellOf(fusefs.LongReads(longRead), told)
	}
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
