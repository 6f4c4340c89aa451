package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	driver = "erofs.csi.dev"
	label  = "erofs.csi.dev/e2e" // on all objects of the suite, with the run's id
	// patience bounds each wait for the cluster.
	patience = 3 * time.Minute
	// settling bounds how long kubelet may leave something mounted that nobody uses.
	settling = time.Minute
)

// suite is the one run of the tests.
var suite *run

// run is what the tests share: the cluster, the node that all pods are put on, and the
// images. All that it makes bears its id and is removed by stop.
type run struct {
	id        string
	config    *rest.Config
	client    kubernetes.Interface
	namespace string
	ownsSpace bool // the namespace is the run's, not there before
	podImage  string

	node, arch string
	plugin     string // the node plugin's pod on the node, in release
	release    string // namespace of the driver
	observer   string // pod that sees the node's mounts

	registry string
	private  *private // nil: E2E_PRIVATE_REGISTRY is not set
	binary   string   // erofs-csi, of this machine
	dir      string   // trees and image files
	tool     string   // test/e2e/tool, of the node's architecture
	refs     []string // pushed
	v1, v2   image    // of equal and other files; see trees_test.go
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(testMain(m))
}

func testMain(m *testing.M) (code int) {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	r, err := start(ctx)
	if r != nil {
		// In a context of its own: what was made is removed after an interrupt, too.
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
			defer cancel()
			if err := r.stop(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "e2e: cleaning up:", err)
				code = 1
			}
		}()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	suite = r
	return m.Run()
}

// start finds the driver and the node and pushes the images. The run that it returns is to
// be stopped, with an error, too.
func start(ctx context.Context) (*run, error) {
	kubeconfig, registry := os.Getenv("KUBECONFIG"), os.Getenv("E2E_REGISTRY")
	if kubeconfig == "" || registry == "" {
		return nil, errors.New("set KUBECONFIG and E2E_REGISTRY: test/e2e/README.md tells what the tests need")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 50, 100
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "erofs-csi-e2e-")
	if err != nil {
		return nil, err
	}
	r := &run{
		id:     strconv.FormatInt(time.Now().UnixMilli(), 36),
		config: config, client: client,
		namespace: env("E2E_POD_NAMESPACE", "erofs-csi-e2e"),
		release:   env("E2E_NAMESPACE", "erofs-csi"),
		podImage:  env("E2E_POD_IMAGE", "docker.io/library/busybox:latest"),
		registry:  registry,
		binary:    env("E2E_BINARY", "../../bin/erofs-csi"),
		dir:       dir,
	}
	for _, step := range []func(context.Context) error{
		r.findNode, r.findPlugin, r.makeNamespace, r.observe, r.buildTool, r.startPrivate, r.makeImages,
	} {
		if err := step(ctx); err != nil {
			return r, err
		}
	}
	return r, nil
}

// stop removes what the run made, and tells what of it is still in use on the node.
func (r *run) stop(ctx context.Context) error {
	var errs []error
	errs = append(errs, r.deleteObjects(ctx))
	if r.ownsSpace {
		errs = append(errs, r.client.CoreV1().Namespaces().Delete(ctx, r.namespace, metav1.DeleteOptions{}))
	}
	if r.private != nil {
		errs = append(errs, r.private.close())
	}
	errs = append(errs, r.removeImages(ctx), os.RemoveAll(r.dir))
	return errors.Join(errs...)
}

// findNode takes E2E_NODE, or the first node that has the driver and takes pods.
func (r *run) findNode(ctx context.Context) error {
	nodes, err := r.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	wanted := os.Getenv("E2E_NODE")
	for _, n := range nodes.Items {
		if wanted != "" && n.Name != wanted || n.Spec.Unschedulable {
			continue
		}
		csi, err := r.client.StorageV1().CSINodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, d := range csi.Spec.Drivers {
			if d.Name == driver {
				r.node, r.arch = n.Name, n.Status.NodeInfo.Architecture
				return nil
			}
		}
	}
	return fmt.Errorf("no node has the driver %s (E2E_NODE=%q): install the chart", driver, wanted)
}

func (r *run) findPlugin(ctx context.Context) error {
	pods, err := r.client.CoreV1().Pods(r.release).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=erofs-csi,app.kubernetes.io/component=node",
		FieldSelector: "spec.nodeName=" + r.node,
	})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
			r.plugin = p.Name
			return nil
		}
	}
	return fmt.Errorf("no pod of the node plugin runs on %s in the namespace %s (E2E_NAMESPACE)", r.node, r.release)
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
