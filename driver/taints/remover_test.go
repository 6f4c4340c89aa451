package taints

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

const (
	driver = "erofs.csi.dev"
	ready  = "topology.erofs.csi.dev/fuse"
	taint  = "erofs.csi.dev/agent-not-ready"
)

// api is an API server with nodes, and CSINodes that tests send.
type api struct {
	*httptest.Server
	events chan string

	mu      sync.Mutex
	nodes   map[string]*corev1.Node // GUARDED_BY(mu)
	reads   int                     // of nodes; GUARDED_BY(mu)
	meddle  func(*corev1.Node)      // is called once between a read and a patch; GUARDED_BY(mu)
	refusal int                     // status of the next patch, if not 0; GUARDED_BY(mu)
}

func startAPI(t *testing.T, nodes ...*corev1.Node) *api {
	t.Helper()
	a := &api{events: make(chan string, 1024), nodes: make(map[string]*corev1.Node)}
	for _, n := range nodes {
		a.nodes[n.Name] = n
	}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	r, err := newRemover(&rest.Config{Host: a.URL}, driver, ready, taint)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/apis/storage.k8s.io/v1/csinodes" {
		a.watch(w, r)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[strings.TrimPrefix(r.URL.Path, "/api/v1/nodes/")]
	switch {
	case n == nil:
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case r.Method == http.MethodGet:
		a.reads++
		_ = json.NewEncoder(w).Encode(n)
		if a.meddle != nil {
			a.meddle(n)
			a.meddle = nil
		}
	case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == string(types.JSONPatchType):
		a.patch(w, r, n)
	default:
		fail(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed)
	}
}

func (a *api) watch(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") != "true" || r.URL.Query().Get("resourceVersion") != "" {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	w.(http.Flusher).Flush()
	for {
		select {
		case e := <-a.events:
			if e == "" {
				return // the server's end of the watch
			}
			_, _ = io.WriteString(w, e+"\n")
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// patch takes what the remover sends: a test and a replacement of all taints.
func (a *api) patch(w http.ResponseWriter, r *http.Request, n *corev1.Node) {
	if a.refusal != 0 {
		fail(w, a.refusal, metav1.StatusReasonForbidden)
		a.refusal = 0
		return
	}
	var ops []struct {
		Op, Path string
		Value    []corev1.Taint
	}
	err := json.NewDecoder(r.Body).Decode(&ops)
	if err != nil || len(ops) != 2 || ops[0].Op != "test" || ops[1].Op != "replace" || ops[0].Path != "/spec/taints" || ops[1].Path != "/spec/taints" {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	if !reflect.DeepEqual(ops[0].Value, n.Spec.Taints) {
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
		return
	}
	n.Spec.Taints = ops[1].Value
	_ = json.NewEncoder(w).Encode(n)
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: reason, Code: int32(code),
	})
}

// send says of a node which drivers it has, with their topology keys.
func (a *api) send(t *testing.T, kind, name, uid string, drivers map[string][]string) {
	t.Helper()
	n := storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{{UID: types.UID(uid)}}}}
	for _, d := range slices.Sorted(maps.Keys(drivers)) {
		n.Spec.Drivers = append(n.Spec.Drivers, storagev1.CSINodeDriver{Name: d, NodeID: name, TopologyKeys: drivers[d]})
	}
	b, err := json.Marshal(map[string]any{"type": kind, "object": n})
	if err != nil {
		t.Fatal(err)
	}
	a.events <- string(b)
}

func newNode(name, uid string, keys ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}}
	for _, k := range keys {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: k, Effect: corev1.TaintEffectNoExecute})
	}
	return n
}

// want waits until nodes have just these taints, as "node: key key".
func (a *api) want(t *testing.T, lines ...string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		got = nil
		a.mu.Lock()
		for _, name := range slices.Sorted(maps.Keys(a.nodes)) {
			line := name + ":"
			for _, taint := range a.nodes[name].Spec.Taints {
				line += " " + taint.Key
			}
			got = append(got, line)
		}
		a.mu.Unlock()
		if slices.Equal(got, lines) {
			return
		}
	}
	t.Errorf("taints %q, want %q", got, lines)
}

// settle waits until all that was sent before has been looked at.
func (a *api) settle(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	a.nodes["last"] = newNode("last", "u-last", taint)
	a.mu.Unlock()
	a.send(t, "ADDED", "last", "u-last", map[string][]string{driver: {ready}})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		a.mu.Lock()
		done := len(a.nodes["last"].Spec.Taints) == 0
		if done {
			delete(a.nodes, "last")
		}
		a.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the last node keeps its taint")
		}
	}
}

// TestRemoves: the taint goes, and no other, from nodes where the driver can serve.
func TestRemoves(t *testing.T) {
	a := startAPI(t,
		newNode("good", "u-good", "before", taint, "after"),
		newNode("clean", "u-clean", "other"),
		newNode("none", "u-none", taint),
		newNode("other", "u-other", taint),
		newNode("unable", "u-unable", taint),
		newNode("replaced", "u-new", taint),
	)
	a.send(t, "ADDED", "good", "u-good", map[string][]string{"other.example": nil, driver: {ready, "more"}})
	a.send(t, "ADDED", "clean", "u-clean", map[string][]string{driver: {ready}})
	a.send(t, "ADDED", "none", "u-none", nil)
	a.send(t, "ADDED", "other", "u-other", map[string][]string{"other.example": {ready}})
	a.send(t, "ADDED", "unable", "u-unable", map[string][]string{driver: nil}) // it has no FUSE
	a.send(t, "ADDED", "replaced", "u-old", map[string][]string{driver: {ready}})
	a.send(t, "ADDED", "gone", "u-gone", map[string][]string{driver: {ready}})
	a.settle(t)
	all := []string{"clean: other", "good: before after", "none: " + taint, "other: " + taint, "replaced: " + taint, "unable: " + taint}
	a.want(t, all...)

	// Now they can.
	a.send(t, "MODIFIED", "none", "u-none", map[string][]string{driver: {ready}})
	a.send(t, "DELETED", "replaced", "u-old", map[string][]string{driver: {ready}})
	a.send(t, "ADDED", "replaced", "u-new", map[string][]string{driver: {ready}})
	a.want(t, "clean: other", "good: before after", "none:", "other: "+taint, "replaced:", "unable: "+taint)
}

// TestLooksOnce: a node is read once, whatever is said of it and however often a watch
// begins anew; one that lost the driver and has it again is another case.
func TestLooksOnce(t *testing.T) {
	a := startAPI(t, newNode("n", "u"))
	serves := map[string][]string{driver: {ready}}
	for range 3 {
		a.send(t, "MODIFIED", "n", "u", serves)
	}
	a.events <- "" // the watch ends
	a.send(t, "ADDED", "n", "u", serves)
	a.settle(t)
	reads := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.reads
	}
	if n := reads(); n != 2 { // with that of settle
		t.Errorf("%d reads of two nodes", n)
	}
	a.mu.Lock()
	a.nodes["n"].Spec.Taints = []corev1.Taint{{Key: taint}}
	a.mu.Unlock()
	a.send(t, "MODIFIED", "n", "u", nil)
	a.send(t, "MODIFIED", "n", "u", serves)
	a.want(t, "n:")
}

// TestMeddled: taints that come while the remover works stay.
func TestMeddled(t *testing.T) {
	a := startAPI(t, newNode("n", "u", taint))
	a.mu.Lock()
	a.meddle = func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "new"}) }
	a.mu.Unlock()
	a.send(t, "ADDED", "n", "u", map[string][]string{driver: {ready}})
	a.want(t, "n: new")
}

// TestTriesAgain: neither a refusal, nor an error in a watch, nor nonsense is the end.
func TestTriesAgain(t *testing.T) {
	for name, trouble := range map[string]func(*api){
		"refused": func(a *api) {
			a.mu.Lock()
			a.refusal = http.StatusForbidden
			a.mu.Unlock()
		},
		"error":    func(a *api) { a.events <- `{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}` },
		"nonsense": func(a *api) { a.events <- `{"type":"ADDED","object":[]}` },
		"cut":      func(a *api) { a.events <- `{"type":"ADDED","object":{`; a.events <- "" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := startAPI(t, newNode("n", "u", taint))
			trouble(a)
			// What comes while the old watch ends is lost; a real one begins with all again.
			sent := make(chan struct{})
			stop := make(chan struct{})
			go func() {
				defer close(sent)
				for {
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
						a.send(t, "ADDED", "n", "u", map[string][]string{driver: {ready}})
					}
				}
			}()
			a.want(t, "n:")
			close(stop)
			<-sent
		})
	}
}

func TestNew(t *testing.T) {
	if _, err := New(t.TempDir()+"/none", driver, ready, taint); err == nil {
		t.Error("no kubeconfig is no error")
	}
	if _, err := newRemover(&rest.Config{Host: "http://[::1"}, driver, ready, taint); err == nil {
		t.Error("a host that is none is no error")
	}
}
