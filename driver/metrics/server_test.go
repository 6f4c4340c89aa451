package metrics

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2/ktesting"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// node is a Source of which nothing is known.
func node() Source {
	return Source{
		Version: "v1", Ready: func() bool { return true },
		Store:   func() nodecache.Counts { return nodecache.Counts{} },
		Engine:  func() engine.Counts { return engine.Counts{} },
		Volumes: func() map[string]int { return nil },
		Sample:  func(context.Context) (Sample, error) { return Sample{}, nil },
	}
}

// serve serves on a port of its own until the end of the test.
func serve(t *testing.T, src Source) (m *Metrics, url string) {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m = New(ctx, src)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = m.serveOn(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return m, "http://" + l.Addr().String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// Nothing but metrics is served.
func TestPaths(t *testing.T) {
	_, url := serve(t, node())
	if code, _ := get(t, url+"/metrics"); code != http.StatusOK {
		t.Errorf("/metrics: %d", code)
	}
	for _, path := range []string{"/", "/metrics/x", "/debug/pprof/"} {
		if code, _ := get(t, url+path); code != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, code)
		}
	}
}

// A call is counted by its method and the code that the caller got.
func TestObserve(t *testing.T) {
	m, url := serve(t, node())
	for _, err := range []error{nil, status.Error(codes.Aborted, "again"), status.Error(codes.Aborted, "again")} {
		info := &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Node/NodeStageVolume"}
		_, got := m.Observe(t.Context(), nil, info, func(context.Context, any) (any, error) { return "x", err })
		if got != err {
			t.Errorf("the caller gets %v, want %v", got, err)
		}
	}
	_, text := get(t, url+"/metrics")
	for _, want := range []string{
		`erofs_csi_rpc_duration_seconds_count{code="OK",method="NodeStageVolume"} 1`,
		`erofs_csi_rpc_duration_seconds_count{code="Aborted",method="NodeStageVolume"} 2`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
}

// A bug in what is asked costs metrics, not the process; what was said before stays.
func TestPanic(t *testing.T) {
	src := node()
	src.Engine = func() engine.Counts { panic("a bug") }
	_, url := serve(t, src)
	code, text := get(t, url+"/metrics")
	if code != http.StatusOK || !strings.Contains(text, "erofs_csi_ready 1\n") {
		t.Errorf("%d: %s", code, text)
	}
}
