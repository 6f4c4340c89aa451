package holder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"
)

// attend keeps the client connected until ctx ends.
func (c *Client) attend(ctx context.Context) {
	defer close(c.done)
	for {
		c.mu.Lock()
		s := c.session
		c.mu.Unlock()
		if s != nil {
			select {
			case <-s.gone:
				c.lose(errGone)
				pause(ctx, firstBackoff)
			case <-ctx.Done():
				s.close()
				<-s.gone
				c.mu.Lock()
				c.session = nil
				c.mu.Unlock()
				return
			}
		}
		s, err := claim(ctx, c.path, c.name, c.wait)
		if err != nil {
			return // only the end of ctx ends it
		}
		if err := c.putAgain(ctx, s); err != nil {
			s.close()
			<-s.gone
			c.wait(err)
			pause(ctx, lastBackoff)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// wait takes down why there is no connection.
func (c *Client) wait(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cause = err
}

// lose tells that the connection has ended.
func (c *Client) lose(err error) {
	c.mu.Lock()
	c.session, c.cause = nil, err
	c.losses++
	for key := range c.items {
		c.pending[key] = true
	}
	c.mu.Unlock()
	c.tell()
}

func (c *Client) tell() {
	c.mu.Lock()
	fn := c.onChange
	c.mu.Unlock()
	if fn != nil {
		fn(c.Status())
	}
}

// putAgain makes the holder of a new session keep what it should, and the session the
// client's. Nothing is put or deleted meanwhile. An item that this holder refuses stays
// pending; one whose file was closed, against the rules, is forgotten.
//
// Errors: that the connection is lost again.
func (c *Client) putAgain(ctx context.Context, s *session) error {
	c.op.Lock()
	err := c.bringUp(ctx, s)
	c.op.Unlock()
	if err == nil {
		c.tell()
	}
	return err
}

func (c *Client) bringUp(ctx context.Context, s *session) error {
	c.mu.Lock()
	keys := slices.Collect(maps.Keys(c.pending))
	anew := c.anew
	c.mu.Unlock()
	if anew {
		if err := c.dropOthers(ctx, s); err != nil {
			return err
		}
	}
	var refused error
	for _, key := range keys {
		c.mu.Lock()
		it, wanted := c.items[key]
		c.mu.Unlock()
		var err error
		if wanted {
			err = put(ctx, s, it)
		} else {
			err = s.do(ctx, &message{kind: kindDelete, key: key})
		}
		if errors.Is(err, errGone) {
			return err
		}
		c.mu.Lock()
		switch {
		case errors.Is(err, os.ErrClosed):
			refused = fmt.Errorf("%q is not kept any more: %w", key, err)
			delete(c.items, key)
			delete(c.pending, key)
		case err != nil:
			refused = fmt.Errorf("%q is not kept: %w", key, err)
		default:
			delete(c.pending, key)
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session, c.cause, c.anew = s, refused, false
	return nil
}

// dropOthers deletes what the holder has and the client does not want.
func (c *Client) dropOthers(ctx context.Context, s *session) error {
	for key := ""; ; {
		r, err := s.ask(ctx, &message{kind: kindNext, key: key}, kindItem)
		if err != nil {
			return err
		}
		closeAll(r.fds)
		if r.kind == kindEnd {
			return nil
		}
		if r.key <= key {
			return s.broken("item %q comes after %q", r.key, key)
		}
		key = r.key
		c.mu.Lock()
		_, wanted := c.items[key]
		c.mu.Unlock()
		if wanted {
			continue
		}
		if err := s.do(ctx, &message{kind: kindDelete, key: key}); err != nil {
			return err
		}
	}
}
