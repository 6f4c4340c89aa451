package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// The user of a registry with authentication.
const registryUser, registryPassword = "user", "secret"

// startRegistry NAME [auth] starts Debian's docker-registry on a free port and
// sets $NAME to its host:port. With auth it wants registryUser, and
// $NAME.json is a dockerconfigjson with the password. stopRegistry NAME stops
// it.
func startRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: startRegistry NAME [auth]")
	}
	name, dir := args[0], ts.MkAbs(args[0]+"-registry")
	ts.Check(os.Mkdir(dir, 0o700))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	host := l.Addr().String()
	ts.Check(l.Close())
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", dir, host)
	if len(args) == 2 {
		users, err := exec.Command("htpasswd", "-Bbn", registryUser, registryPassword).Output()
		ts.Check(err)
		ts.Check(os.WriteFile(dir+".users", users, 0o600))
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s.users}}\n", dir)
		ts.Check(os.WriteFile(ts.MkAbs(name+".json"), fmt.Appendf(nil,
			`{"auths": {%q: {"username": %q, "password": %q}}}`, host, registryUser, registryPassword), 0o600))
	}
	ts.Check(os.WriteFile(dir+".yml", []byte(config), 0o600))
	s := &served{cmd: exec.Command("docker-registry", "serve", dir+".yml")}
	s.cmd.Stderr = &s.stderr
	ts.Check(s.cmd.Start())
	ts.Value(servedKey{}).(map[string]*served)["registry "+name] = s
	ts.Setenv(name, host)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", host)
		if err == nil {
			ts.Check(c.Close())
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("docker-registry does not answer: %v", err)
		}
	}
}

func stopRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: stopRegistry NAME")
	}
	running := ts.Value(servedKey{}).(map[string]*served)
	s := running["registry "+args[0]]
	if s == nil {
		ts.Fatalf("no registry %s", args[0])
	}
	delete(running, "registry "+args[0])
	ts.Check(s.cmd.Process.Kill())
	_ = s.cmd.Wait() // killed
}

// shortRegistry NAME REGISTRY BYTES stands before $REGISTRY, at $NAME, and breaks off the
// layers that are asked for together after so many bytes, for good.
func shortRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: shortRegistry NAME REGISTRY BYTES")
	}
	var left atomic.Int64
	n, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	left.Store(n)
	back := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: ts.Getenv(args[1])})
	back.ErrorLog = log.New(io.Discard, "", 0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w = &shortWriter{w, &left}
		}
		back.ServeHTTP(w, r)
	}))
	ts.Defer(func() {
		server.CloseClientConnections()
		server.Close()
	})
	ts.Setenv(args[0], server.Listener.Addr().String())
}

type shortWriter struct {
	http.ResponseWriter
	left *atomic.Int64
}

func (w *shortWriter) Write(p []byte) (int, error) {
	if w.left.Add(-int64(len(p))) < 0 {
		panic(http.ErrAbortHandler)
	}
	return w.ResponseWriter.Write(p)
}

// pushContainer REFERENCE LAYER... pushes a container image of tar archives, each
// compressed by gzip.
func pushContainer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: pushContainer REFERENCE LAYER...")
	}
	ctx := context.Background()
	repo, err := remote.NewRepository(args[0])
	ts.Check(err)
	repo.PlainHTTP = true
	put := func(mediaType string, p []byte) ocispec.Descriptor {
		d := content.NewDescriptorFromBytes(mediaType, p)
		ts.Check(repo.Push(ctx, d, bytes.NewReader(p)))
		return d
	}
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}
	var layers []ocispec.Descriptor
	for _, name := range args[1:] {
		layer, err := os.ReadFile(ts.MkAbs(filepath.Clean(name)))
		ts.Check(err)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(layer))
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err = w.Write(layer)
		ts.Check(err)
		ts.Check(w.Close())
		layers = append(layers, put(ocispec.MediaTypeImageLayerGzip, z.Bytes()))
	}
	text, err := json.Marshal(config)
	ts.Check(err)
	configDesc := put(ocispec.MediaTypeImageConfig, text)
	manifest, err := oras.PackManifest(ctx, repo, oras.PackManifestVersion1_1, "",
		oras.PackManifestOptions{ConfigDescriptor: &configDesc, Layers: layers})
	ts.Check(err)
	ts.Check(repo.Tag(ctx, manifest, repo.Reference.Reference))
}

// push FILE REFERENCE pushes an artifact with one EROFS layer, as `oras push`
// makes it, and sets $LAYER to the layer's digest.
func push(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: push FILE REFERENCE")
	}
	ctx := context.Background()
	image, err := os.ReadFile(ts.MkAbs(filepath.Clean(args[0])))
	ts.Check(err)
	repo, err := remote.NewRepository(args[1])
	ts.Check(err)
	repo.PlainHTTP = true
	repo.Client = &auth.Client{
		Cache:      auth.NewCache(),
		Credential: auth.StaticCredential(repo.Reference.Registry, auth.Credential{Username: registryUser, Password: registryPassword}),
	}
	layer := content.NewDescriptorFromBytes("application/vnd.erofs.layer.v1", image)
	ts.Check(repo.Push(ctx, layer, bytes.NewReader(image)))
	ts.Setenv("LAYER", layer.Digest.String())
	manifest, err := oras.PackManifest(ctx, repo, oras.PackManifestVersion1_1, "application/vnd.erofs",
		oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
	ts.Check(err)
	ts.Check(repo.Tag(ctx, manifest, repo.Reference.Reference))
}
