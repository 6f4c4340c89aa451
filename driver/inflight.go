package driver

import "sync"

// inflight is a set of names (volumes, paths) that an operation works on. It
// never queues: kubelet gives up on an RPC after two minutes and sends the next
// one, so a queue would only grow, and the specification asks for Aborted.
//
// The zero value is empty. Safe for concurrent use.
type inflight struct {
	mu    sync.Mutex
	names map[string]struct{} // GUARDED_BY mu
}

// acquire takes all of names or none; release gives them back, once.
func (f *inflight) acquire(names ...string) (release func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil {
		f.names = make(map[string]struct{})
	}
	for _, name := range names {
		if _, busy := f.names[name]; busy {
			return nil, false
		}
	}
	for _, name := range names {
		f.names[name] = struct{}{}
	}
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, name := range names {
			delete(f.names, name)
		}
	}), true
}
