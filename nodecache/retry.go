package nodecache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// retryPolicy says how often something that may pass is tried.
type retryPolicy struct {
	attempts  int           // without progress, the first included
	base, max time.Duration // before the 2nd attempt; limit
	patience  time.Duration // the longest Retry-After that is waited for
	stall     time.Duration // a body that brings nothing for so long is cut
	progress  int64         // bytes that make the attempts count anew
}

// defaultRetry gives up on a registry that is down after about 3 s: kubelet
// repeats the whole call with a backoff of its own.
var defaultRetry = retryPolicy{
	attempts: 5,
	base:     200 * time.Millisecond,
	max:      10 * time.Second,
	stall:    time.Minute,
	progress: 1 << 20,
}

// transientError marks a failure that another attempt may not meet.
type transientError struct {
	err   error
	after time.Duration // at least so long from now; 0: unknown
}

func (e *transientError) Error() string { return e.err.Error() }
func (e *transientError) Unwrap() error { return e.err }

// do calls fn until it succeeds, fails for good, ctx ends or the attempts are
// used up. fn returns how many bytes it brought further.
func (p retryPolicy) do(ctx context.Context, fn func() (int64, error)) error {
	for attempt := 1; ; attempt++ {
		n, err := fn()
		var transient *transientError
		if !errors.As(err, &transient) {
			return err
		}
		if n >= p.progress {
			attempt = 1
		}
		if attempt >= p.attempts || transient.after > p.patience {
			return transient.err
		}
		timer := time.NewTimer(max(p.backoff(attempt), transient.after))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w, after: %s", ended(ctx), transient.err.Error())
		}
	}
}

// backoff doubles with each attempt; a random half of it keeps the nodes of a
// cluster from coming back at once.
func (p retryPolicy) backoff(attempt int) time.Duration {
	d := min(p.base<<min(attempt-1, 16), p.max)
	return d/2 + rand.N(d/2+1) //nolint:gosec // spreads load, guards nothing
}
