package metrics

import (
	"fmt"
	"sync"
	"time"
)

// partWait is how long a scrape waits for a part of the node that is quick when all is well.
const partWait = 2 * time.Second

// part is a part of the node that is asked in a goroutine of its own, so that one that
// hangs costs its own metrics and no others. While a question hangs the next scrapes wait
// for its answer, so there is one goroutine at most. Safe for concurrent use.
type part[T any] struct {
	ask func() T

	mu      sync.Mutex
	running *question[T] // GUARDED_BY(mu); nil: none
}

// question is one call of ask. Its other fields are set before done is closed.
type question[T any] struct {
	done   chan struct{}
	answer T
	err    error
}

// start asks, unless a question is under way. The answer is had by wait.
func (p *part[T]) start() *question[T] {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		p.running = &question[T]{done: make(chan struct{})}
		go p.run(p.running)
	}
	return p.running
}

// run makes a panic an error: it would end the process, and with it the mounts of the node.
func (p *part[T]) run(q *question[T]) {
	defer func() {
		if e := recover(); e != nil {
			q.err = fmt.Errorf("panic: %v", e)
		}
		p.mu.Lock()
		p.running = nil
		p.mu.Unlock()
		close(q.done)
	}()
	q.answer = p.ask()
}

// errNoAnswer says that a part of the node hangs.
var errNoAnswer = fmt.Errorf("no answer within %v", partWait)

// wait waits for the answer until late is closed.
func (q *question[T]) wait(late <-chan struct{}) (T, error) {
	select {
	case <-q.done:
	case <-late:
	}
	select {
	case <-q.done: // long ago: another part was waited for
		return q.answer, q.err
	default:
		var none T
		return none, errNoAnswer
	}
}
