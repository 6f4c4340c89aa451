package main

import (
	"fmt"
	"sync"
	"time"
)

// result is what one scenario showed.
type result struct {
	name, front string
	took        time.Duration

	mu       sync.Mutex
	findings []string // what must not be; GUARDED_BY(mu)
	notes    []string // what was measured besides; GUARDED_BY(mu)

	kills, resumeKills, ooms, waiting, calls, repeated, cancelled, cycles int64
	readers, unkillable                                                   int
	steps, bytes, errors, wrong, lenient                                  uint64
	all, struck, waited                                                   durations
	back                                                                  []time.Duration // from the start of a plugin until it was ready
	leaks                                                                 []leak
}

// maxFindings is how many findings of a scenario are told of.
const maxFindings = 30

func (r *result) fail(err error) {
	if err != nil {
		r.failf("%v", err)
	}
}

func (r *result) failf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	progress("  FAILED: %s", text)
	if len(r.findings) < maxFindings {
		r.findings = append(r.findings, text)
	}
}

func (r *result) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	progress("  %s", text)
	r.notes = append(r.notes, text)
}

// count adds what a reader did, and its findings.
func (r *result) count(p *readerProcess) {
	c := p.counts
	r.readers++
	r.steps += c.steps.Load()
	r.bytes += c.bytes.Load()
	r.lenient += c.lenient.Load()
	r.errors += c.errors.Load()
	r.wrong += c.wrong.Load()
	r.all.add(&c.all)
	r.struck.add(&c.struck)
	r.waited.add(&c.waited)
	if n := c.errors.Load() + c.wrong.Load(); n > 0 {
		r.failf("%s: %d errors, %d wrong: %s", p.dir, c.errors.Load(), c.wrong.Load(), p.words())
	}
}

func (r *result) tally(w *world) {
	t := &w.tally
	r.kills, r.resumeKills, r.ooms, r.waiting = t.kills.Load(), t.resumeKills.Load(), t.ooms.Load(), t.waiting.Load()
	r.calls, r.repeated, r.cancelled, r.cycles = t.calls.Load(), t.repeated.Load(), t.cancelled.Load(), t.cycles.Load()
}

// leak compares a number of before with that of after.
type leak struct {
	what          string
	before, after int64
	slack         int64 // how much more is nothing
}

func (l leak) leaked() bool { return l.after > l.before+l.slack }
