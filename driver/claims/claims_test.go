package claims

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// startAPI serves objects by path, as the API server would, and what else answer says.
func startAPI(t *testing.T, objects map[string]any, answer http.HandlerFunc) *Reader {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		object, ok := objects[r.URL.Path]
		switch {
		case r.Method != http.MethodGet:
			t.Errorf("%s %s: want reading only", r.Method, r.URL)
		case ok:
			_ = json.NewEncoder(w).Encode(object)
		case answer != nil:
			answer(w, r)
		default:
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(metav1.Status{
				TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
				Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound, Message: r.URL.Path + " not found",
			})
		}
	}))
	t.Cleanup(server.Close)
	reader, err := newReader(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return reader
}

const claimsPath = "/api/v1/namespaces/team/persistentvolumeclaims/"

func newClaim(name, volume string, edit func(*corev1.PersistentVolumeClaim)) corev1.PersistentVolumeClaim {
	pvc := corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{Kind: "PersistentVolumeClaim", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "team", UID: "uid-of-claim"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: volume},
	}
	if edit != nil {
		edit(&pvc)
	}
	return pvc
}

func TestClaim(t *testing.T) {
	group := "populate.example"
	reader := startAPI(t, map[string]any{
		claimsPath + "a": newClaim("a", "", func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{"erofs.csi.dev/image": "r.example/a:1", "erofs.csi.dev/x": "", "other.example/image": "no"}
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "b"}
		}),
		claimsPath + "plain": newClaim("plain", "", nil),
		claimsPath + "populated": newClaim("populated", "", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "Populator", Name: "p"}
		}),
	}, nil)
	got, err := reader.Claim(t.Context(), "team", "a", "erofs.csi.dev/")
	if err != nil || got.Source != "b" || !maps.Equal(got.Annotations, map[string]string{"image": "r.example/a:1", "x": ""}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, name := range []string{"plain", "populated"} {
		got, err = reader.Claim(t.Context(), "team", name, "erofs.csi.dev/")
		if err != nil || got.Source != "" || len(got.Annotations) != 0 {
			t.Errorf("%s: %+v, %v; want an empty one", name, got, err)
		}
	}
	if _, err := reader.Claim(t.Context(), "team", "nobody", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such claim: %v, want ErrNotFound", err)
	}
	if _, err := reader.Claim(t.Context(), "other", "a", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("another namespace: %v, want ErrNotFound", err)
	}
}

func TestVolume(t *testing.T) {
	volume := func(edit func(*corev1.PersistentVolume)) corev1.PersistentVolume {
		pv := corev1.PersistentVolume{
			TypeMeta: metav1.TypeMeta{Kind: "PersistentVolume", APIVersion: "v1"},
			Spec: corev1.PersistentVolumeSpec{
				Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("3Gi")},
				ClaimRef: &corev1.ObjectReference{UID: "uid-of-claim"},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: "erofs.csi.dev", VolumeHandle: "h", VolumeAttributes: map[string]string{"image": "r.example/a:1"},
				}},
			},
		}
		if edit != nil {
			edit(&pv)
		}
		return pv
	}
	const volumesPath = "/api/v1/persistentvolumes/"
	reader := startAPI(t, map[string]any{
		claimsPath + "a":       newClaim("a", "a", nil),
		claimsPath + "pending": newClaim("pending", "", nil),
		claimsPath + "gone":    newClaim("gone", "gone", nil),
		claimsPath + "others":  newClaim("others", "others", nil),
		claimsPath + "free":    newClaim("free", "free", nil),
		claimsPath + "nfs":     newClaim("nfs", "nfs", nil),
		volumesPath + "a":      volume(nil),
		volumesPath + "others": volume(func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "other" }),
		volumesPath + "free":   volume(func(v *corev1.PersistentVolume) { v.Spec.ClaimRef = nil }),
		volumesPath + "nfs":    volume(func(v *corev1.PersistentVolume) { v.Spec.CSI = nil }),
	}, nil)
	got, err := reader.Volume(t.Context(), "team", "a")
	if err != nil || got.Driver != "erofs.csi.dev" || got.Handle != "h" || got.Capacity != 3<<30 || got.Attributes["image"] != "r.example/a:1" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := reader.Volume(t.Context(), "team", "nfs"); err != nil || got.Driver != "" {
		t.Errorf("none of CSI: %+v, %v; want no driver", got, err)
	}
	for _, name := range []string{"pending", "gone", "others", "free", "nobody"} {
		if _, err := reader.Volume(t.Context(), "team", name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", name, err)
		}
	}
}

// TestFailures: an API that refuses, is broken, hangs or is not there.
func TestFailures(t *testing.T) {
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"forbidden":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, ErrForbidden},
		"unauthorized": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, ErrForbidden},
		"internal":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, ErrUnavailable},
		"no JSON":      {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, ErrUnavailable},
		"another kind": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"b","namespace":"team"}}`))
		}, ErrUnavailable},
	} {
		if _, err := startAPI(t, nil, test.answer).Claim(t.Context(), "team", "a", ""); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	release := make(chan struct{})
	defer close(release)
	reader := startAPI(t, nil, func(http.ResponseWriter, *http.Request) { <-release })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := reader.Claim(ctx, "team", "a", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent API: %v, want DeadlineExceeded", err)
	}
	reader, err := newReader(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Claim(t.Context(), "team", "a", ""); !errors.Is(err, ErrUnavailable) {
		t.Errorf("nobody there: %v, want ErrUnavailable", err)
	}
}

func TestNew(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if reader, err := New(""); err != nil || reader != nil {
		t.Errorf("outside of a cluster: %v, %v; want none", reader, err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if _, err := New(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("no such file: %v, want an error that names it", err)
	}
	config := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"k"}}],` +
		`"clusters":[{"name":"k","cluster":{"server":"https://127.0.0.1:1"}}]}`
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if reader, err := New(file); err != nil || reader == nil {
		t.Errorf("a kubeconfig: %v, %v", reader, err)
	}
}
