package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// makeNamespace makes the namespace of the pods, unless it is there, and removes what an
// earlier run that was killed has left.
func (r *run) makeNamespace(ctx context.Context) error {
	_, err := r.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: r.namespace,
		// The observer's and the page frames' pods are privileged.
		Labels: map[string]string{"pod-security.kubernetes.io/enforce": "privileged"},
	}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return r.deleteObjects(ctx)
	}
	r.ownsSpace = err == nil
	return err
}

// deleteObjects deletes all objects with the suite's label and waits until pods, claims and
// volumes are gone.
func (r *run) deleteObjects(ctx context.Context) error {
	core, ns := r.client.CoreV1(), r.namespace
	all := metav1.ListOptions{LabelSelector: label}
	now := metav1.DeleteOptions{}
	err := errors.Join(
		core.Pods(ns).DeleteCollection(ctx, now, all),
		core.PersistentVolumeClaims(ns).DeleteCollection(ctx, now, all),
		core.Secrets(ns).DeleteCollection(ctx, now, all),
		core.PersistentVolumes().DeleteCollection(ctx, now, all),
		r.client.StorageV1().StorageClasses().DeleteCollection(ctx, now, all),
	)
	if err != nil {
		return err
	}
	return poll(ctx, "pods, claims and volumes to be gone", func(ctx context.Context) (bool, error) {
		pods, err1 := core.Pods(ns).List(ctx, all)
		claims, err2 := core.PersistentVolumeClaims(ns).List(ctx, all)
		volumes, err3 := core.PersistentVolumes().List(ctx, all)
		if err := errors.Join(err1, err2, err3); err != nil {
			return false, err
		}
		return len(pods.Items)+len(claims.Items)+len(volumes.Items) == 0, nil
	})
}

// observe starts the pod that sees the node's mounts.
func (r *run) observe(ctx context.Context) error {
	privileged := true
	p := r.newPod("observer", nil)
	p.Spec.HostPID = true
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &privileged}
	if _, err := r.client.CoreV1().Pods(r.namespace).Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return err
	}
	r.observer = p.Name
	return r.waitReady(ctx, p.Name)
}

// nodeMounts returns the node's mount table.
func (r *run) nodeMounts(ctx context.Context) (string, error) {
	return r.exec(ctx, r.namespace, r.observer, nil, "cat", "/proc/1/mountinfo")
}

// domain is a domain as `erofs-csi status --json` tells of it.
type domain struct {
	Name                                   string
	BytesResident, BytesSaved, StoredBytes int64
	Fronts                                 []struct {
		Image   string
		Volumes []string
	}
}

// domains asks the node plugin what it serves.
func (r *run) domains(ctx context.Context) ([]domain, error) {
	out, err := r.exec(ctx, r.release, r.plugin, nil, "/erofs-csi", "status", "--json")
	if err != nil {
		return nil, err
	}
	var engines []struct{ Domains []domain }
	if err := json.Unmarshal([]byte(out), &engines); err != nil {
		return nil, err
	}
	var all []domain
	for _, e := range engines {
		all = append(all, e.Domains...)
	}
	return all, nil
}

// domain returns one domain. A domain that is not there fails the test.
func (r *run) domain(t *testing.T, name string) domain {
	t.Helper()
	all, err := r.domains(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(d domain) bool { return d.Name == name })
	if i < 0 {
		t.Fatalf("the node plugin has no domain %q", name)
	}
	return all[i]
}

// exec runs a command in a pod and returns its stdout; stderr is in the error. With stdin
// it runs until that ends.
func (r *run) exec(ctx context.Context, namespace, pod string, stdin io.Reader, command ...string) (string, error) {
	var stdout bytes.Buffer
	err := r.execTo(ctx, namespace, pod, stdin, &stdout, command...)
	return stdout.String(), err
}

func (r *run) execTo(ctx context.Context, namespace, pod string, stdin io.Reader, stdout io.Writer, command ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	container := "c"
	if namespace == r.release {
		container = "erofs-csi"
	}
	request := r.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(r.config, "GET", request.URL().String())
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout, Stderr: &stderr}); err != nil {
		return fmt.Errorf("%s: %q: %w: %s", pod, command, err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// inPod is exec in a pod of the test, which a failure fails.
func (r *run) inPod(t *testing.T, pod string, command ...string) string {
	t.Helper()
	out, err := r.exec(t.Context(), r.namespace, pod, nil, command...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// waitReady waits until a pod's container runs.
func (r *run) waitReady(ctx context.Context, name string) error {
	err := poll(ctx, "pod "+name+" to run", func(ctx context.Context) (bool, error) {
		p, err := r.client.CoreV1().Pods(r.namespace).Get(ctx, name, metav1.GetOptions{})
		return err == nil && ready(p), err
	})
	if err != nil {
		if p, getErr := r.client.CoreV1().Pods(r.namespace).Get(ctx, name, metav1.GetOptions{}); getErr == nil {
			events, _ := r.events(ctx, p.UID)
			return fmt.Errorf("%w; its events:\n%s", err, events)
		}
	}
	return err
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// events returns what was said of an object, an event a line.
func (r *run) events(ctx context.Context, uid types.UID) (string, error) {
	list, err := r.client.CoreV1().Events(r.namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(uid)})
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, e := range list.Items {
		fmt.Fprintf(&b, "%s: %s\n", e.Reason, strings.ReplaceAll(e.Message, "\n", " "))
	}
	return b.String(), nil
}

// wantEvent waits for an event with a reason and all of some words.
func (r *run) wantEvent(t *testing.T, uid types.UID, reason string, words ...string) {
	t.Helper()
	var seen string
	err := poll(t.Context(), "an event", func(ctx context.Context) (bool, error) {
		var err error
		if seen, err = r.events(ctx, uid); err != nil {
			return false, err
		}
		for line := range strings.Lines(seen) {
			if strings.HasPrefix(line, reason+": ") && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		t.Fatalf("no event %s with %q: %v; there are\n%s", reason, words, err, seen)
	}
}

// poll asks every fifth of a second until done says so, at most for patience. An error of
// done ends it.
func poll(ctx context.Context, what string, done wait.ConditionWithContextFunc) error {
	return pollFor(ctx, patience, what, done)
}

func pollFor(ctx context.Context, limit time.Duration, what string, done wait.ConditionWithContextFunc) error {
	if err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, limit, true, done); err != nil {
		return fmt.Errorf("waiting for %s: %w", what, err)
	}
	return nil
}
