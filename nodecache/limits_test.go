package nodecache

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestLimits: so many at a host, so many at all hosts, short ones beside long
// ones, urgent ones always, and who gives up leaves nothing.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(3, 2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		take := func(host string, long bool) func() {
			t.Helper()
			release, err := l.take(ctx, host, long)
			if err != nil {
				t.Fatalf("%s: %v", host, err)
			}
			return release
		}
		refused := func(host string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			if _, err := l.take(ctx, host, true); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%s: %v, want to wait", host, err)
			}
		}
		a1, a2 := take("a", true), take("a", true)
		refused("a") // its two
		b := take("b", true)
		refused("c") // the node's three
		take("c", false)()
		urgentRelease, err := l.take(urgent(ctx), "a", true)
		if err != nil {
			t.Fatal(err)
		}
		urgentRelease()
		a1()
		a1() // once is enough
		c := take("c", true)
		refused("a")
		waiting := make(chan func())
		go func() { waiting <- take("a", true) }()
		synctest.Wait()
		a2()
		(<-waiting)()
		b()
		c()
		if len(l.long.node) != 0 || len(l.short.node) != 0 || len(l.long.hosts) != 0 || len(l.short.hosts) != 0 {
			t.Errorf("left: %d and %d of the node, %v and %v of hosts", len(l.long.node), len(l.short.node), l.long.hosts, l.short.hosts)
		}
	})
}
