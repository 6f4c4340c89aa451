package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/erofs-csi/erofs-csi/driver"
	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// kubectlParallel is how many nodes are asked at a time.
const kubectlParallel = 8

// cluster says which pods to ask, and how to reach them. It is kubectl that does: a
// plugin of it has it, with all ways to authenticate, and the node plugins are spared
// what Kubernetes' own client for exec takes, a sixth of this program.
type cluster struct {
	kubeconfig, context            string
	namespace, selector, container string
	timeout                        time.Duration
}

// check refuses what kubectl would take for something else.
func (c *cluster) check() error {
	if c.timeout <= 0 {
		return usagef("--timeout %s: want more than nothing", c.timeout)
	}
	if c.namespace == "" || c.selector == "" || c.container == "" {
		return usagef("--namespace, --selector and --container: want a value")
	}
	return nil
}

// pluginPod is the pod of a node plugin, by what is used of the API's object.
type pluginPod struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase      string `json:"phase"`
		Conditions []struct {
			Type, Status string
		} `json:"conditions"`
		ContainerStatuses []struct {
			Name         string `json:"name"`
			RestartCount int    `json:"restartCount"`
		} `json:"containerStatuses"`
	} `json:"status"`
}

func (p *pluginPod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// nodeStatus is a node as kubectl-erofs shows it.
type nodeStatus struct {
	Node     string `json:"node"`
	Pod      string `json:"pod"`
	Phase    string `json:"phase"`
	Ready    bool   `json:"ready"`
	Restarts int    `json:"restarts"` // of the plugin's container
	// Error is why the plugin did not tell all of what follows; empty: it did.
	Error   string                `json:"error,omitempty"`
	Engines []engine.Status       `json:"engines"`
	Volumes []driver.VolumeHealth `json:"volumes"`
}

// statuses asks the plugins of all nodes, or of one. One that does not answer is in the
// list with its error.
func (c *cluster) statuses(ctx context.Context, node string) ([]nodeStatus, error) {
	pods, err := c.pods(ctx, node)
	if err != nil {
		return nil, err
	}
	list := make([]nodeStatus, len(pods))
	var all errgroup.Group
	all.SetLimit(kubectlParallel)
	for i, p := range pods {
		all.Go(func() error {
			list[i] = c.status(ctx, p)
			return nil
		})
	}
	_ = all.Wait() // of none there is an error
	return list, ctx.Err()
}

func (c *cluster) status(ctx context.Context, p pluginPod) nodeStatus {
	n := nodeStatus{Node: p.Spec.NodeName, Pod: p.Metadata.Name, Phase: p.Status.Phase, Ready: p.ready(), Engines: []engine.Status{}, Volumes: []driver.VolumeHealth{}}
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == c.container {
			n.Restarts = s.RestartCount
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.ask(ctx, p, &n.Engines, "status", "--json")
	if err == nil {
		err = c.ask(ctx, p, &n.Volumes, "volumes", "--json")
	}
	if err != nil {
		n.Error = oneLine(err.Error())
	}
	return n
}

// ask runs erofs-csi in a pod and decodes the JSON that it prints.
func (c *cluster) ask(ctx context.Context, p pluginPod, v any, args ...string) error {
	var out bytes.Buffer
	if err := c.exec(ctx, p, &out, args); err != nil {
		return err
	}
	if err := json.Unmarshal(out.Bytes(), v); err != nil {
		return fmt.Errorf("what erofs-csi %s says: %w", args[0], err)
	}
	return nil
}

// pods are those of the plugins, in the order of their nodes: at least one.
func (c *cluster) pods(ctx context.Context, node string) ([]pluginPod, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	args := []string{"get", "pods", "--selector=" + c.selector, "--output=json"}
	if node != "" {
		args = append(args, "--field-selector=spec.nodeName="+node)
	}
	var out bytes.Buffer
	if err := c.kubectl(ctx, &out, args...); err != nil {
		return nil, err
	}
	var list struct {
		Items []pluginPod `json:"items"`
	}
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		return nil, fmt.Errorf("what kubectl says of pods: %w", err)
	}
	pods := slices.DeleteFunc(list.Items, func(p pluginPod) bool { return p.Spec.NodeName == "" })
	if len(pods) == 0 {
		on := ""
		if node != "" {
			on = " on node " + node
		}
		return nil, failf("no pod of a node plugin%s in namespace %s (%s): name them by --namespace and --selector", on, c.namespace, c.selector)
	}
	slices.SortFunc(pods, func(a, b pluginPod) int {
		return cmp.Or(strings.Compare(a.Spec.NodeName, b.Spec.NodeName), strings.Compare(a.Metadata.Name, b.Metadata.Name))
	})
	return pods, nil
}

// exec runs erofs-csi in a pod.
func (c *cluster) exec(ctx context.Context, p pluginPod, out io.Writer, args []string) error {
	return c.kubectl(ctx, out, slices.Concat([]string{"exec", "--container=" + c.container, p.Metadata.Name, "--", "/erofs-csi"}, args)...)
}

// kubectl runs it. Its error is what it says, of what it runs in a pod the last line.
func (c *cluster) kubectl(ctx context.Context, out io.Writer, args ...string) error {
	line := []string{"--namespace=" + c.namespace}
	if c.kubeconfig != "" {
		line = append(line, "--kubeconfig="+c.kubeconfig)
	}
	if c.context != "" {
		line = append(line, "--context="+c.context)
	}
	cmd := exec.CommandContext(ctx, "kubectl", append(line, args...)...) // #nosec G204 -- flags and names, each an argument of its own
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w: install it, or put it into PATH", err)
	case ctx.Err() != nil:
		return fmt.Errorf("kubectl %s: %w: raise --timeout", args[0], ctx.Err())
	}
	return errors.New(kubectlSays(stderr.String(), err))
}

// kubectlSays is what kubectl, or what ran in the pod, said last.
func kubectlSays(stderr string, err error) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	// It adds how the program ended.
	if n := len(lines); n > 1 && strings.HasPrefix(lines[n-1], "command terminated with") {
		lines = lines[:n-1]
	}
	said := strings.TrimPrefix(strings.TrimSpace(lines[len(lines)-1]), "erofs-csi: ")
	return cmp.Or(said[:min(len(said), statusErrors)], fmt.Sprintf("kubectl: %v", err))
}
