package holder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// Item is what is kept under a key: bytes, and descriptors in their order.
type Item struct {
	Key   string
	Meta  []byte
	Files []*os.File
}

// ErrLost says that no holder is there at the moment.
var ErrLost = errors.New("holder: not connected")

// ErrClosed says that a client was closed.
var ErrClosed = errors.New("holder: client is closed")

// Client keeps items at a holder under a name. While the holder is lost, it remembers
// what it should keep, connects again when one listens, and puts all again. It is safe
// for concurrent use.
type Client struct {
	path, name string
	end        context.CancelFunc
	done       chan struct{} // closed when nothing of the client runs

	opener opener

	// LOCK ORDER: op, mu.
	op sync.Mutex // held during a change of items, here and at the holder

	mu       sync.Mutex
	closed   bool            // GUARDED_BY(mu)
	session  *session        // GUARDED_BY(mu); nil: lost
	items    map[string]Item // GUARDED_BY(mu); what should be kept
	pending  map[string]bool // GUARDED_BY(mu); keys that the holder may have otherwise
	anew     bool            // GUARDED_BY(mu); drop what a predecessor kept
	losses   int             // GUARDED_BY(mu)
	cause    error           // GUARDED_BY(mu); of the last loss
	onChange func(Status)    // GUARDED_BY(mu)
}

// Status is how a client stands with its holder.
type Status struct {
	Connected bool
	// Items should be kept; Pending of them, or deletions, the holder does not know of.
	Items, Pending int
	// Losses counts the times that a connection was lost.
	Losses int
	// Err is why there is no connection, or why an item is pending beside one.
	Err error
}

// Dial connects and claims a name. One client has a name at a time: Dial waits, until
// ctx ends, while another client's connection that has it is open; a killed process'
// closes by itself. It waits for a holder to listen, too. ctx has no meaning later.
//
// Errors: that of ctx, with what Dial waited for; ErrVersion; ErrProtocol; ErrRefused.
func Dial(ctx context.Context, path, name string) (*Client, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	s, err := claim(ctx, path, name, nil)
	if err != nil {
		return nil, err
	}
	c := newClient(path, name)
	c.session = s
	c.run() //nolint:contextcheck // the client outlives ctx
	return c, nil
}

// Attach is a client that does not wait for a holder: it begins as one that is lost.
// When it has its name, it drops what is kept there but was not put by it. For a
// process that had to begin without what its predecessor left.
//
// Errors: ErrLimit.
func Attach(path, name string) (*Client, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	c := newClient(path, name)
	c.anew = true
	c.run()
	return c, nil
}

func checkName(name string) error {
	if len(name) == 0 || len(name) > MaxName {
		return fmt.Errorf("%w: a name of %d bytes, want 1 to %d", ErrLimit, len(name), MaxName)
	}
	return nil
}

func newClient(path, name string) *Client {
	return &Client{
		path: path, name: name, done: make(chan struct{}),
		items: make(map[string]Item), pending: make(map[string]bool),
	}
}

func (c *Client) run() {
	ctx, end := context.WithCancel(context.Background())
	c.end = end
	go c.attend(ctx)
}

// Items returns all that is kept under the name, sorted by key, with descriptors of
// the caller's, closed on exec. The client takes them for put: they are put again to
// another holder while their files are open and until they are deleted or replaced.
//
// Errors: ErrLost; those of the protocol. No file is then open.
func (c *Client) Items() ([]Item, error) {
	c.op.Lock()
	defer c.op.Unlock()
	s, err := c.current()
	if err != nil {
		return nil, err
	}
	items, err := s.items(context.Background())
	if err != nil {
		return nil, lost(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, it := range items {
		if _, known := c.items[it.Key]; !known {
			c.note(it.Key, c.session != s)
			c.items[it.Key] = Item{Key: it.Key, Meta: slices.Clone(it.Meta), Files: slices.Clone(it.Files)}
		}
	}
	return items, nil
}

// Put keeps bytes and descriptors, at once in place of what the key had. The files must
// stay open until Delete or the next Put of the key returns: a client that loses its
// holder puts all again when a new one listens. While there is none Put succeeds.
//
// Errors: ErrLimit, ErrRefused, os.ErrClosed of a file: the key has what it had before;
// ErrClosed.
func (c *Client) Put(key string, meta []byte, files ...*os.File) error {
	switch {
	case len(key) == 0 || len(key) > MaxName:
		return fmt.Errorf("%w: a key of %d bytes, want 1 to %d", ErrLimit, len(key), MaxName)
	case len(meta) > MaxMeta:
		return fmt.Errorf("%w: %q has %d bytes, at most %d are kept", ErrLimit, key, len(meta), MaxMeta)
	case len(files) > MaxFiles:
		return fmt.Errorf("%w: %q has %d descriptors, at most %d are kept", ErrLimit, key, len(files), MaxFiles)
	}
	it := Item{Key: key, Meta: slices.Clone(meta), Files: slices.Clone(files)}
	if err := withDescriptors(files, nil, func([]int) error { return nil }); err != nil {
		return fmt.Errorf("holder: files of %q: %w", key, err)
	}
	c.op.Lock()
	defer c.op.Unlock()
	s, err := c.current()
	if errors.Is(err, ErrClosed) {
		return err
	}
	if err == nil {
		err = put(context.Background(), s, it)
	}
	pending := isLost(err)
	if err != nil && !pending {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.items[key] = it
	c.note(key, pending || c.session != s)
	return nil
}

// Delete lets go of what the keys have, if they have anything. The client does not use
// their files any more. While there is no holder Delete succeeds.
//
// Errors: ErrClosed; those of the protocol.
func (c *Client) Delete(keys ...string) error {
	c.op.Lock()
	defer c.op.Unlock()
	for _, key := range keys {
		if len(key) == 0 || len(key) > MaxName {
			continue // nothing has it
		}
		s, err := c.current()
		if errors.Is(err, ErrClosed) {
			return err
		}
		if err == nil {
			err = s.do(context.Background(), &message{kind: kindDelete, key: key})
		}
		pending := isLost(err)
		if err != nil && !pending {
			return err
		}
		c.mu.Lock()
		delete(c.items, key)
		c.note(key, pending || c.session != s)
		c.mu.Unlock()
	}
	return nil
}

// Close gives the name up. What is kept stays kept; what is pending is lost.
func (c *Client) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.end()
	<-c.done
	c.opener.close()
	return nil
}

// Status tells how the client stands with its holder.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Status{Connected: c.session != nil, Items: len(c.items), Pending: len(c.pending), Losses: c.losses, Err: c.cause}
}

// OnChange has fn called each time that the holder is lost or there again, one call
// after the other, by a goroutine of the client. fn must not call Close.
func (c *Client) OnChange(fn func(Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onChange = fn
}

// current is the session, or ErrLost, or ErrClosed.
func (c *Client) current() (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, ErrClosed
	case c.session == nil:
		return nil, ErrLost
	default:
		return c.session, nil
	}
}

// note says whether the holder may have something else for the key. REQUIRES: mu.
func (c *Client) note(key string, pending bool) {
	if pending {
		c.pending[key] = true
	} else {
		delete(c.pending, key)
	}
}

// isLost tells of an error that leaves open what the holder did, or has nobody do it.
func isLost(err error) bool { return errors.Is(err, errGone) || errors.Is(err, ErrLost) }

func lost(err error) error {
	if errors.Is(err, errGone) {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}

func put(ctx context.Context, s *session, it Item) error {
	m := &message{kind: kindPut, key: it.Key, meta: it.Meta, files: uint16(len(it.Files))} //nolint:gosec // MaxFiles bounds it
	return withDescriptors(it.Files, nil, func(fds []int) error { return s.do(ctx, m, fds...) })
}

const (
	firstBackoff = 10 * time.Millisecond
	lastBackoff  = time.Second
)

// claim connects and claims the name, again and again until ctx ends. failed, if it
// is not nil, hears of each failure, and has claim go on after those that can't pass
// but with another holder.
func claim(ctx context.Context, path, name string, failed func(error)) (*session, error) {
	var why error // it fails, but for ctx
	for backoff := firstBackoff; ; backoff = min(2*backoff, lastBackoff) {
		s, err := connect(ctx, path)
		if err == nil {
			if err = s.claim(ctx, name); err == nil {
				return s, nil
			}
		}
		if failed != nil {
			failed(err)
		} else if errors.Is(err, ErrVersion) || errors.Is(err, ErrProtocol) || errors.Is(err, ErrRefused) {
			return nil, err
		}
		if ctx.Err() == nil || why == nil {
			why = err
		}
		select {
		case <-ctx.Done():
			if !errors.Is(why, ctx.Err()) {
				why = fmt.Errorf("%w: %w", ctx.Err(), why)
			}
			return nil, why
		case <-time.After(backoff):
		}
	}
}
