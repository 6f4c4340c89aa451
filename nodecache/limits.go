package nodecache

import (
	"context"
	"sync"
)

// Defaults of [RegistryConfig].
const (
	DefaultMaxRequests        = 32
	DefaultMaxRequestsPerHost = 12
)

// limits bounds how many requests are under way at once, of the node and at
// each host. A request is under way until its body is closed. Those for blobs
// are counted apart from the others: a short one must not wait until a long one
// has ended.
//
// LOCK ORDER: a host's place is taken before the node's, so that who waits for
// the node's keeps nobody from another host for longer than their own limit.
type limits struct {
	perHost     int
	long, short class
}

// class are the places of one kind of request.
type class struct {
	node chan struct{}

	mu    sync.Mutex
	hosts map[string]*hostPlaces // GUARDED_BY(mu); those in use
}

type hostPlaces struct {
	places chan struct{}
	users  int // who has or waits for a place. GUARDED_BY(class.mu)
}

// newLimits takes the limits of the node and of each host; 0 is the default.
func newLimits(node, perHost int) *limits {
	if node <= 0 {
		node = DefaultMaxRequests
	}
	if perHost <= 0 {
		perHost = DefaultMaxRequestsPerHost
	}
	l := &limits{perHost: perHost}
	for _, c := range []*class{&l.long, &l.short} {
		c.node, c.hosts = make(chan struct{}, node), make(map[string]*hostPlaces)
	}
	return l
}

type urgentKey struct{}

// urgent marks a request that somebody waits for in a read: it is made at once,
// whatever the limits.
func urgent(ctx context.Context) context.Context { return context.WithValue(ctx, urgentKey{}, true) }

// take waits for a place, until ctx ends. Call release once.
func (l *limits) take(ctx context.Context, host string, long bool) (release func(), err error) {
	if ctx.Value(urgentKey{}) != nil {
		return func() {}, nil
	}
	c := &l.short
	if long {
		c = &l.long
	}
	h := c.enter(host, l.perHost)
	select {
	case h.places <- struct{}{}:
	case <-ctx.Done():
		c.leave(host, h)
		return nil, ended(ctx)
	}
	select {
	case c.node <- struct{}{}:
	case <-ctx.Done():
		<-h.places
		c.leave(host, h)
		return nil, ended(ctx)
	}
	return sync.OnceFunc(func() {
		<-c.node
		<-h.places
		c.leave(host, h)
	}), nil
}

func (c *class) enter(host string, perHost int) *hostPlaces {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hosts[host]
	if h == nil {
		h = &hostPlaces{places: make(chan struct{}, perHost)}
		c.hosts[host] = h
	}
	h.users++
	return h
}

func (c *class) leave(host string, h *hostPlaces) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(c.hosts, host)
	}
}
