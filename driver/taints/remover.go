// Package taints takes a startup taint from nodes when the node plugin can serve there.
// Nodes that begin with such a taint get no pods that would wait for their volumes.
//
// Limits. It watches CSINode objects, reads single Node objects and patches their taints;
// it needs the right to do so, and to nothing else. A node is looked at once, when its
// CSINode says that the plugin is there: a taint that comes later stays. Several processes
// may do this for one cluster.
package taints

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

const (
	// requestTimeout bounds a request for a node.
	requestTimeout = 10 * time.Second
	// watchTime is how long a watch lasts; the server ends it.
	watchTime = 10 * time.Minute
	// watchGrace is what the server may be late.
	watchGrace = 30 * time.Second
	// attempts to patch a node whose taints others change meanwhile.
	attempts = 5
	// firstPause and maxPause are between watches, doubled after each failure.
	firstPause, maxPause = time.Second, time.Minute
)

// Remover removes one taint.
type Remover struct {
	client rest.Interface
	driver string // name of the CSI driver
	ready  string // topology key that the driver has on nodes where it can serve
	taint  string // key of the taint

	done map[string]string // UIDs of the nodes that were looked at, by name; Run's own
}

// New returns a Remover for the cluster of a kubeconfig file, or, with "", for the one that
// this process runs in.
func New(kubeconfig, driver, ready, taint string) (*Remover, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubernetes configuration: %w", err)
	}
	return newRemover(config, driver, ready, taint)
}

func newRemover(config *rest.Config, driver, ready, taint string) (*Remover, error) {
	scheme := runtime.NewScheme()
	version := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(scheme, version) // what errors are told in
	config = rest.CopyConfig(config)
	config.APIPath = "/api"
	config.GroupVersion = &version
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = "erofs-csi-controller"
	config.Timeout = 0 // a watch is one long request
	config.QPS, config.Burst = 50, 100
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return &Remover{client: client, driver: driver, ready: ready, taint: taint, done: make(map[string]string)}, nil
}

// Run works until ctx ends. It logs what fails, and tries again.
func (r *Remover) Run(ctx context.Context) {
	logger := klog.FromContext(ctx).WithValues("taint", r.taint)
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := r.watch(klog.NewContext(ctx, logger))
		if err == nil || time.Since(began) > maxPause {
			pause = firstPause
		}
		if err != nil && ctx.Err() == nil {
			logger.Error(err, "Cannot remove the startup taint of nodes, trying again", "pause", pause)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// The objects of the API (k8s.io/api) by what is used of them.
type (
	event struct {
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	csiNode struct {
		Metadata struct {
			Name            string                 `json:"name"`
			OwnerReferences []struct{ UID string } `json:"ownerReferences"`
		} `json:"metadata"`
		Spec struct {
			Drivers []struct {
				Name         string   `json:"name"`
				TopologyKeys []string `json:"topologyKeys"`
			} `json:"drivers"`
		} `json:"spec"`
	}
	node struct {
		Metadata struct{ UID string } `json:"metadata"`
		Spec     struct {
			Taints []json.RawMessage `json:"taints"`
		} `json:"spec"`
	}
)

// watch follows the CSINodes until the server ends it. A watch that names no version
// begins with all that there are.
func (r *Remover) watch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, watchTime+watchGrace)
	defer cancel()
	body, err := r.client.Get().AbsPath("/apis/storage.k8s.io/v1/csinodes").
		Param("watch", "true").Param("timeoutSeconds", strconv.Itoa(int(watchTime/time.Second))).
		Stream(ctx)
	if err != nil {
		return fmt.Errorf("watch CSINodes: %w", err)
	}
	defer func() { _ = body.Close() }()
	for events := json.NewDecoder(body); ; {
		var e event
		if err := events.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("watch CSINodes: %w", err)
		}
		if e.Type == "ERROR" {
			var s metav1.Status
			_ = json.Unmarshal(e.Object, &s) // what is not there is empty
			return fmt.Errorf("watch CSINodes: %w", &apierrors.StatusError{ErrStatus: s})
		}
		var n csiNode
		if err := json.Unmarshal(e.Object, &n); err != nil {
			return fmt.Errorf("watch CSINodes: %w", err)
		}
		if e.Type == "DELETED" || !r.serves(n) {
			delete(r.done, n.Metadata.Name)
			continue
		}
		if err := r.look(ctx, n); err != nil {
			return err
		}
	}
}

func (r *Remover) serves(n csiNode) bool {
	for _, d := range n.Spec.Drivers {
		if d.Name == r.driver {
			return slices.Contains(d.TopologyKeys, r.ready)
		}
	}
	return false
}

// look removes the taint of a node that the plugin serves, if it has it.
func (r *Remover) look(ctx context.Context, n csiNode) error {
	name, owner := n.Metadata.Name, ""
	if len(n.Metadata.OwnerReferences) > 0 {
		owner = n.Metadata.OwnerReferences[0].UID
	}
	if uid, ok := r.done[name]; ok && uid == owner {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// The API knows a path by its parts: a name with a slash would be another path, but
	// names of nodes have none.
	path := "/api/v1/nodes/" + name
	for range attempts {
		raw, err := r.client.Get().AbsPath(path).Do(ctx).Raw()
		if apierrors.IsNotFound(err) {
			return nil // the CSINode goes as well
		}
		if err != nil {
			return fmt.Errorf("read node %s: %w", name, err)
		}
		var is node
		if err := json.Unmarshal(raw, &is); err != nil {
			return fmt.Errorf("read node %s: %w", name, err)
		}
		if is.Metadata.UID != owner {
			return nil // of an earlier node of that name: it goes, and another comes
		}
		patch, err := r.without(is.Spec.Taints)
		if err != nil {
			return fmt.Errorf("taints of node %s: %w", name, err)
		}
		if patch == nil {
			r.done[name] = owner
			return nil
		}
		err = r.client.Patch(types.JSONPatchType).AbsPath(path).Body(patch).Do(ctx).Error()
		switch {
		case err == nil:
			klog.FromContext(ctx).V(2).Info("Removed the startup taint of a node", "node", name)
			r.done[name] = owner
			return nil
		case apierrors.IsInvalid(err), apierrors.IsConflict(err):
			// Other taints came or went meanwhile.
		default:
			return fmt.Errorf("patch node %s: %w", name, err)
		}
	}
	return fmt.Errorf("patch node %s: its taints change all the time", name)
}

// without is the patch that removes the taint from taints if they are still these; nil if
// it is not among them.
func (r *Remover) without(taints []json.RawMessage) ([]byte, error) {
	left := []json.RawMessage{}
	for _, raw := range taints {
		var t struct {
			Key string `json:"key"`
		}
		if err := json.Unmarshal(raw, &t); err != nil {
			return nil, err
		}
		if t.Key != r.taint {
			left = append(left, raw)
		}
	}
	if len(left) == len(taints) {
		return nil, nil
	}
	return json.Marshal([]struct {
		Op    string            `json:"op"`
		Path  string            `json:"path"`
		Value []json.RawMessage `json:"value"`
	}{{"test", "/spec/taints", taints}, {"replace", "/spec/taints", left}})
}
