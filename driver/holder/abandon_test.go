package holder

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestAbandoned: what no client serves is let go of after a time, also where clients come
// and go that do nothing; what one serves, or has served a moment ago, is not.
func TestAbandoned(t *testing.T) {
	const after = 600 * time.Millisecond
	path := socketPath(t)
	r := startWith(t, path, after)
	served := dial(t, path, "served")
	must(t, served.Put("k", []byte("x"), pipeEnd(t)))
	gone := dial(t, path, "gone")
	must(t, gone.Put("k", []byte("x"), pipeEnd(t), pipeEnd(t)))
	back := dial(t, path, "back")
	must(t, back.Put("k", []byte("x"), pipeEnd(t)))
	start := time.Now()
	must(t, gone.Close())
	for range 40 { // a client that fails each time before it serves
		c := dial(t, path, "gone")
		items, err := c.Items()
		must(t, err)
		for _, it := range items {
			it.close()
		}
		must(t, c.Close())
		// One that is killed now and then, but serves.
		must(t, back.Close())
		back = dial(t, path, "back")
		must(t, back.Put("k", []byte("y")))
		if len(items) == 0 {
			break
		}
		time.Sleep(after / 10)
	}
	if took := time.Since(start); took < after {
		t.Errorf("let go after %s", took)
	}
	if !strings.Contains(r.logged(), `2 descriptors of "gone"`) {
		t.Errorf("log:\n%s", r.logged())
	}
	for _, c := range []*Client{served, back} {
		if items, err := c.Items(); err != nil || len(items) != 1 {
			t.Errorf("%s: %d items, %v", c.name, len(items), err)
		} else {
			items[0].close()
		}
	}
	list, err := List(t.Context(), path)
	must(t, err)
	if len(list) != 2 {
		t.Errorf("kept: %+v", list)
	}
}

// pipeEnd is some descriptor, open until the end of the test.
func pipeEnd(t *testing.T) *os.File {
	t.Helper()
	read, write, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() {
		_ = read.Close()
		_ = write.Close()
	})
	return write
}
