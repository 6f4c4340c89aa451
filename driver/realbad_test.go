package driver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// registry is as much of an OCI registry as pulls need. Package nodecache is
// tested against a real one; this one misbehaves on demand.
type registry struct {
	*httptest.Server

	mu        sync.Mutex
	manifests map[string][]byte // GUARDED_BY mu; by name
	blobs     map[string][]byte // GUARDED_BY mu; by digest
	// password, when set, is asked for.
	password string
	// cut ends the answer for a blob in its middle.
	cut bool
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{manifests: make(map[string][]byte), blobs: make(map[string][]byte)}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func digestName(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// push puts an image file into the registry and returns its reference.
func (r *registry) push(t *testing.T, name, image string) string {
	t.Helper()
	blob, err := os.ReadFile(image)
	must(t, err)
	config := []byte("{}")
	descriptor := func(mediaType string, b []byte) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": digestName(b), "size": len(b)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"artifactType": "application/vnd.erofs",
		"config":       descriptor("application/vnd.oci.empty.v1+json", config),
		"layers":       []any{descriptor("application/vnd.erofs.layer.v1", blob)},
	})
	must(t, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[digestName(blob)], r.blobs[digestName(config)] = blob, config
	r.manifests[name+"/1"], r.manifests[name+"/"+digestName(manifest)] = manifest, manifest
	return strings.TrimPrefix(r.URL, "http://") + "/" + name + ":1"
}

// tamper changes the bytes of each blob, not their names.
func (r *registry) tamper() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, blob := range r.blobs {
		blob = bytes.Clone(blob)
		blob[len(blob)/2] ^= 1
		r.blobs[name] = blob
	}
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, password, _ := req.BasicAuth(); r.password != "" && password != r.password {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	parts := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	if len(parts) < 3 {
		w.WriteHeader(http.StatusOK)
		return
	}
	name := strings.Join(parts[:len(parts)-2], "/")
	body, mediaType := r.manifests[name+"/"+parts[len(parts)-1]], "application/vnd.oci.image.manifest.v1+json"
	if parts[len(parts)-2] == "blobs" {
		body, mediaType = r.blobs[parts[len(parts)-1]], "application/octet-stream"
	}
	if body == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	if mediaType == "application/octet-stream" && r.cut {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Docker-Content-Digest", digestName(body))
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
}

// TestRealBadInput is the bad input that needs the real store and engine.
func TestRealBadInput(t *testing.T) {
	n := newNode(t, "auto")
	good := n.image(t, "good.erofs", images.TinyTree(t))
	content, err := os.ReadFile(good)
	must(t, err)
	file := func(name string, b []byte) string {
		path := filepath.Join(n.dir, "images", name)
		must(t, os.WriteFile(path, b, 0o600))
		return path
	}
	feature := bytes.Clone(content)
	feature[1024+8] &^= 1     // no checksum
	feature[1024+80+3] = 0x80 // an incompatible feature that nobody knows
	outside := filepath.Join(n.dir, "outside.erofs")
	must(t, os.WriteFile(outside, content, 0o600))
	must(t, os.Symlink(outside, filepath.Join(n.dir, "images", "link.erofs")))

	healthy, private, cut, forged := newRegistry(t), newRegistry(t), newRegistry(t), newRegistry(t)
	down := httptest.NewServer(nil)
	down.Close()
	private.password = "hunter2"
	cut.cut = true
	forgedRef := forged.push(t, "app", good)
	forged.tamper()

	tests := []struct {
		name, image string
		code        codes.Code
		words       []string
	}{
		{"path outside", outside, codes.PermissionDenied, []string{outside}},
		{"path of the node", "/etc/passwd", codes.PermissionDenied, nil},
		{"link to the outside", filepath.Join(n.dir, "images", "link.erofs"), codes.PermissionDenied, nil},
		{"no such file", filepath.Join(n.dir, "images", "none.erofs"), codes.NotFound, []string{"none.erofs"}},
		{"relative path", "./a.erofs", codes.InvalidArgument, nil},
		{"bad reference", "UPPER CASE", codes.InvalidArgument, []string{"UPPER CASE"}},
		{"text", file("text", []byte(strings.Repeat("not an image\n", 1000))), codes.InvalidArgument, []string{"EROFS"}},
		{"short file", file("short", content[:1000]), codes.InvalidArgument, nil},
		{"cut off in the superblock", file("half", content[:1100]), codes.InvalidArgument, nil},
		{"unknown feature", file("feature", feature), codes.FailedPrecondition, []string{"feature"}},
		{"registry down", strings.TrimPrefix(down.URL, "http://") + "/app:1", codes.Unavailable, nil},
		{"401", private.push(t, "app", good), codes.Unauthenticated, []string{"pull secret"}},
		{"404", strings.TrimPrefix(healthy.URL, "http://") + "/none:1", codes.NotFound, []string{"none"}},
		{"cut off in the middle", cut.push(t, "app", good), codes.Unavailable, nil},
		{"digest mismatch", forgedRef, codes.DataLoss, []string{"digest"}},
	}
	ch := n.start(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := leftovers(t, n)
			err := n.stage(ch, "v", test.image)
			wantCode(t, err, test.code, test.words...)
			if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(status.Convert(err).Message(), "\n")) {
				t.Errorf("error of more than a line, or with a secret: %q", err)
			}
			must(t, os.Remove(n.path("staging-v")))
			// An inline volume fails the same way.
			wantCode(t, n.inline(ch, "csi-v", "pod", "team", test.image), test.code, test.words...)
			if after := leftovers(t, n); !slices.Equal(after, before) {
				t.Errorf("left behind: %q, before: %q", after, before)
			}
		})
	}
	t.Run("pull secret", func(t *testing.T) {
		secret := func(password string) map[string]string {
			host := strings.TrimPrefix(private.URL, "http://")
			return map[string]string{secretKey: fmt.Sprintf(`{"auths":{%q:{"username":"u","password":%q}}}`, host, password)}
		}
		ref := strings.TrimPrefix(private.URL, "http://") + "/app:1"
		stage := func(id string, secrets map[string]string) error {
			must(t, os.MkdirAll(n.path("staging-"+id), 0o750))
			_, err := ch.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{
				VolumeId: id, StagingTargetPath: n.path("staging-" + id), VolumeCapability: reader(),
				VolumeContext: volumeContext(ref, nil), Secrets: secrets,
			})
			return err
		}
		wantCode(t, stage("w", secret("wrong")), codes.Unauthenticated)
		must(t, stage("w", secret("hunter2")))
		// The blob is on the node now; an inline volume still needs a secret.
		wantCode(t, n.inline(ch, "csi-v", "pod", "team", ref), codes.Unauthenticated)
		must(t, n.unstage(ch, "w"))
	})
	log, err := os.ReadFile(ch.log)
	must(t, err)
	if bytes.Contains(log, []byte("hunter2")) {
		t.Error("the log tells a secret")
	}
}

// leftovers lists what a failed call could leave: mounts, files, descriptors.
func leftovers(t *testing.T, n *node) []string {
	t.Helper()
	var all []string
	for _, path := range filesBelow(t, n.dir) {
		if !strings.Contains(path, "/cache/blobs/") || !strings.HasSuffix(path, ".index") {
			all = append(all, path)
		}
	}
	return append(all, n.volumeMounts(t)...)
}

// TestRealFullDisk: a blob that does not fit is refused before it is written.
func TestRealFullDisk(t *testing.T) {
	n := newNode(t, "auto")
	tree := t.TempDir()
	must(t, os.WriteFile(filepath.Join(tree, "big"), make([]byte, 4<<20), 0o600))
	ref := newRegistry(t).push(t, "app", n.image(t, "big.erofs", tree, "-Enoinline_data"))
	must(t, os.Mkdir(n.config.CacheDir, 0o700))
	must(t, unix.Mount("small", n.config.CacheDir, "tmpfs", 0, "size=1m"))
	ch := n.start(t)
	wantCode(t, n.stage(ch, "v", ref), codes.ResourceExhausted, "space")
	if names := fileNames(t, filepath.Join(n.config.CacheDir, "blobs", "sha256")); len(names) != 0 {
		t.Errorf("left in the store: %q", names)
	}
}
