package nodecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/erofs-csi/erofs-csi/nodecache/credplugin"
)

// candidate is a credential that may be accepted, and who gave it.
type candidate struct {
	cred  auth.Credential
	from  string // for errors; "" if nobody did
	given bool   // by the caller
}

// keychain is the node's own credentials: a dockerconfigjson and the plugins of
// kubelet. nil has none.
type keychain struct {
	file    *watchedFile        // or nil
	plugins *credplugin.Plugins // or nil
}

func newKeychain(cfg RegistryConfig) (*keychain, error) {
	k := &keychain{}
	if cfg.CredentialsFile != "" {
		k.file = &watchedFile{path: cfg.CredentialsFile}
	}
	if cfg.ProviderConfig == "" {
		return k, nil
	}
	var err error
	if k.plugins, err = credplugin.Load(cfg.ProviderConfig, cfg.ProviderBinDir); err != nil {
		return nil, fmt.Errorf("%w: image credential providers: %w", ErrConfiguration, err)
	}
	return k, nil
}

// place is a repository at a host, as credentials are looked up.
type place struct{ registry, repository string }

// fromFile looks into the node's dockerconfigjson. The problem is why it could
// not be used.
func (k *keychain) fromFile(places []place) (found []candidate, problem error) {
	if k == nil || k.file == nil {
		return nil, nil
	}
	config, err := k.file.read()
	if err != nil {
		return nil, fmt.Errorf("the node's registry credentials: %w", err)
	}
	for _, p := range places {
		list, err := credentialsFor(config, p.registry, p.repository)
		if err != nil {
			return nil, fmt.Errorf("the node's registry credentials %s: %w", k.file.path, err)
		}
		for _, c := range list {
			found = append(found, candidate{cred: c, from: "the node's registry credentials"})
		}
	}
	return found, nil
}

// wanted are the tokens, by audience, that a plugin can use; nil for none.
func (k *keychain) wanted(tokens map[string]string) map[string]string {
	if k == nil {
		return nil
	}
	var some map[string]string
	for audience, token := range tokens {
		if token != "" && k.plugins.Wants(audience) {
			if some == nil {
				some = make(map[string]string)
			}
			some[audience] = token
		}
	}
	return some
}

// fromPlugins asks the plugins for an image, with the caller's tokens.
func (k *keychain) fromPlugins(ctx context.Context, image place, places []place, tokens map[string]string) (found []candidate, problems []error) {
	if k == nil || k.plugins == nil {
		return nil, nil
	}
	for _, answer := range k.plugins.Lookup(ctx, image.registry+"/"+image.repository, tokens) {
		who := "credential provider " + answer.Provider
		if answer.Err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", who, answer.Err))
			continue
		}
		entries := make(map[string]authEntry, len(answer.Auth))
		for key, a := range answer.Auth {
			entries[key] = authEntry{Username: a.Username, Password: a.Password}
		}
		for _, p := range places {
			list, _ := matchingCredentials(entries, p.registry, p.repository) // fails for base64 only
			for _, c := range list {
				found = append(found, candidate{cred: c, from: who})
			}
		}
	}
	return found, problems
}

// problems are what can be said before anybody asks for an image.
func (k *keychain) problems() []error {
	var errs []error
	if k.file != nil {
		config, err := k.file.read()
		if err == nil {
			_, err = credentialsFor(config, "", "")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("registry credentials %s: %w", k.file.path, err))
		}
	}
	return append(errs, k.plugins.Unusable()...)
}

// watchedFile is a file of secrets, at most maxDockerConfig bytes, read again
// when it was replaced or written to.
type watchedFile struct {
	path string

	mu   sync.Mutex
	text []byte      // GUARDED_BY(mu)
	was  os.FileInfo // GUARDED_BY(mu); nil: not read yet
	at   time.Time   // GUARDED_BY(mu); when it was read
}

// settled is the age from which a file's time tells it from a later version: a
// write within the same tick of the clock has the same.
const settled = 2 * time.Second

func (w *watchedFile) read() ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, err := os.OpenFile(w.path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not make us wait
	if err != nil {
		w.was, w.text = nil, nil
		return nil, err
	}
	defer func() { _ = f.Close() }()
	now, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !now.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if w.was != nil && os.SameFile(w.was, now) && w.was.ModTime().Equal(now.ModTime()) && w.was.Size() == now.Size() &&
		w.at.Sub(now.ModTime()) > settled {
		return w.text, nil
	}
	at := time.Now()
	text, err := io.ReadAll(io.LimitReader(f, maxDockerConfig+1))
	if err != nil {
		return nil, err
	}
	w.text, w.was, w.at = text, now, at
	return text, nil
}
