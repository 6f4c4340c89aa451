package driver

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAskReady: the answer of a plugin that is not ready yet, of one that is, and of
// none.
func TestAskReady(t *testing.T) {
	p := &plugin{store: newFakeStore(), engine: newFakeEngine(t), dir: t.TempDir()}
	node := p.startUnready(t, inlinePolicy{})
	endpoint := "unix://" + node.socket
	for !node.ready.Load() {
		time.Sleep(time.Millisecond)
	}
	for _, ready := range []bool{true, false} {
		node.ready.Store(ready)
		if got, err := AskReady(context.Background(), endpoint); err != nil || got != ready {
			t.Errorf("%t, %v; want %t", got, err, ready)
		}
	}
	p.stop()
	if _, err := AskReady(context.Background(), endpoint); err == nil || !strings.Contains(err.Error(), node.socket) {
		t.Errorf("nobody there: %v, want an error that names the socket", err)
	}

	// One that accepts and says nothing, as a stopped process.
	mute := filepath.Join(p.dir, "mute.sock")
	l, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := AskReady(ctx, "unix://"+mute); err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("a mute plugin: %v after %v", err, time.Since(start))
	}
}
