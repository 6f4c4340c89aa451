package nodecache

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Config says where a store is and what it may do.
type Config struct {
	// Dir is the store directory, made (0700) if missing. It must be on a
	// local file system with rename(2), flock(2) and fsync(2).
	Dir string
	// AllowedPaths are the directories, absolute, below which images may be
	// used by path, symbolic links resolved. nil allows any path, empty but
	// not nil allows none.
	AllowedPaths []string
	// PlainHTTP tells for a registry (host or host:port) whether to speak HTTP
	// instead of HTTPS. If nil, localhost, 127.0.0.0/8 and [::1] are asked by
	// HTTPS and, if they answer in plain HTTP, by that; all others by HTTPS.
	PlainHTTP func(host string) bool
	// RootCAs verify registries; nil means the system's.
	RootCAs *x509.CertPool
	// Registries is how to get at registries.
	Registries RegistryConfig
	// ReserveBytes of the disk are left free by pulls. 0 means 1 % of the file
	// system and at most 256 MiB; a negative value means none.
	ReserveBytes int64
	// LimitBytes is what the store may take on the disk, as du(1) counts it, all
	// of its files and directories but those that others keep in Dir. 0: no limit.
	LimitBytes int64
	// EvictBelowBytes: while less of the disk is free, [Store.Tend] evicts images
	// that were not used for some minutes. 0: never for that.
	EvictBelowBytes int64
	// ConvertBytes bounds the files of an image that is converted from layers, in
	// bytes, and twice as much its layers uncompressed. 0: 256 GiB.
	ConvertBytes int64
	// OnEvict, if set, is told of each eviction. It must return soon and call
	// nothing of the store.
	OnEvict func(Eviction)
}

// Store is an open store directory. All methods may be called concurrently.
type Store struct {
	dir        layout
	allowed    []string
	reserve    int64
	disk       disk
	retry      retryPolicy
	patience   time.Duration // readPatience but in tests
	lazySpan   int           // lazySpan but in tests
	registries *registries
	lock       *os.File
	temps      atomic.Uint64 // names below tmp

	// life ends when Close is called, with the cause ErrInterrupted.
	life context.Context
	kill context.CancelCauseFunc

	convertBytes int64
	converters   chan struct{} // one slot a running conversion

	limit      int64
	evictBelow int64
	onEvict    func(Eviction)
	letGo      func(id string)
	tendEvery  time.Duration
	tending    chan struct{} // wakes Tend
	evictions  atomic.Int64
	counters   counters

	// space makes one step of looking for room and taking it.
	// LOCK ORDER: space before mu.
	space sync.Mutex

	mu      sync.Mutex
	closed  bool                        // GUARDED_BY(mu)
	running sync.WaitGroup              // Add: GUARDED_BY(mu), while !closed
	flights map[digest.Digest]*transfer // GUARDED_BY(mu)
	// conversions by manifest. GUARDED_BY(mu)
	conversions map[digest.Digest]*converting
	uses        map[string]*use          // by Image.ID; GUARDED_BY(mu)
	claims      map[string]int64         // what a file may come to take, by path; GUARDED_BY(mu)
	takes       map[digest.Digest]uint64 // see Image.Take; GUARDED_BY(mu)
}

// Open opens a store directory, making it if needed, locks it and removes what
// an interrupted process left half done. The error wraps [ErrLocked] if another
// process has it open.
func Open(cfg Config) (*Store, error) { return open(cfg, disk{}) }

func open(cfg Config, d disk) (_ *Store, err error) {
	if cfg.Dir == "" {
		return nil, errors.New("image store: no directory is configured")
	}
	root, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("image store %s: %w", cfg.Dir, err)
	}
	d.moving = new(sync.RWMutex)
	s := &Store{
		dir:      newLayout(root),
		reserve:  cfg.ReserveBytes,
		disk:     d,
		retry:    defaultRetry,
		patience: readPatience,
		lazySpan: lazySpan,
		flights:  make(map[digest.Digest]*transfer),

		convertBytes: cfg.ConvertBytes, converters: make(chan struct{}, maxConversions),
		conversions: make(map[digest.Digest]*converting),

		limit: cfg.LimitBytes, evictBelow: cfg.EvictBelowBytes, onEvict: cfg.OnEvict,
		tendEvery: tendEvery, tending: make(chan struct{}, 1),
		uses: make(map[string]*use), claims: make(map[string]int64),
	}
	if cfg.AllowedPaths != nil {
		s.allowed = []string{}
	}
	for _, p := range cfg.AllowedPaths {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("allowed path %q is not absolute", p)
		}
		if p = filepath.Clean(p); !slices.Contains(s.allowed, p) {
			s.allowed = append(s.allowed, p)
		}
	}
	if s.registries, err = newRegistries(cfg); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if s.lock, err = lockDirectory(s.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.lock.Close()
		}
	}()
	if err := s.makeDirectories(); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.repair(); err != nil && !errors.Is(err, unix.EROFS) { // nothing that is left serves a wrong byte
		return nil, fmt.Errorf("image store: repair %s: %w", root, err)
	}
	s.life, s.kill = context.WithCancelCause(context.Background())
	return s, nil
}

func (s *Store) makeDirectories() error {
	for _, dir := range s.dir.directories() {
		made := os.Mkdir(dir, 0o700)
		if made != nil && !errors.Is(made, os.ErrExist) && !full(made) && !errors.Is(made, unix.EROFS) {
			return made
		}
		st, err := os.Lstat(dir)
		if errors.Is(err, os.ErrNotExist) && dir != s.dir.blobs && dir != filepath.Dir(s.dir.blobs) {
			continue // a store of an older release on a disk that takes nothing: it is empty
		}
		if err != nil {
			return errors.Join(made, err)
		}
		if !st.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		if st.Mode().Perm() != 0o700 {
			if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory needs x
				return err
			}
		}
	}
	for _, dir := range []string{filepath.Dir(s.dir.blobs), s.dir.root, filepath.Dir(s.dir.root)} {
		if err := s.disk.syncDir(dir); err != nil && dir != filepath.Dir(s.dir.root) {
			return err // the parent of root may not be ours to open
		}
	}
	return nil
}

// Dir is the directory of the store. What others keep in it must not have the name
// of anything in the package comment.
func (s *Store) Dir() string { return s.dir.root }

// Close interrupts running pulls, waits for their files to be removed, and
// unlocks the directory. Images in use stay readable until their Release.
// Later calls of other methods fail with [ErrInterrupted]; of Close do nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.kill(ErrInterrupted)
	s.running.Wait()
	s.registries.transports.close()
	return s.lock.Close()
}

// begin keeps Close from returning until end. It fails after Close.
func (s *Store) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrInterrupted
	}
	s.running.Add(1)
	return nil
}

func (s *Store) end() { s.running.Done() }

// bound returns ctx that also ends, with the cause ErrInterrupted, when the
// store is closed. Call stop when done.
func (s *Store) bound(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(s.life, func() { cancel(ErrInterrupted) })
	return ctx, func() {
		unhook()
		cancel(nil)
	}
}

// Credentials are what a caller has to show to registries, beside what the node has.
type Credentials struct {
	// DockerConfig is a pull secret in dockerconfigjson form, or nil.
	DockerConfig []byte
	// Tokens are those of the service account of the caller's pod, by audience, for
	// credential provider plugins that want one; or nil.
	Tokens map[string]string
}

// AcquireOptions are the options of [Store.Acquire].
type AcquireOptions struct {
	// Policy says when the registry is asked; zero means [IfNotPresent].
	Policy PullPolicy
	// DockerConfig and Tokens are the caller's Credentials.
	DockerConfig []byte
	Tokens       map[string]string
	// Lazy allows an image that can be read before it is complete, where it comes from
	// a registry that sends parts of blobs, and is large enough: its reads fetch what
	// they need, before what a pull beside them brings in order. What they return is
	// unverified until [Image.Complete]. A read that the registry does not answer waits
	// for at most half a minute, and fails; a later one tries again. The credentials
	// are kept in memory for as long as the pull runs.
	//
	// With the policy Never, an image of which a part is on the node is completed.
	Lazy bool
	// Progress, where it is set, tells how far the Acquire is while it runs.
	Progress *Progress
}

// Acquire finds or pulls the image that ref names and keeps it open until its
// Release. ref is one of
//
//	/dir/image.erofs[,device=/dir/blob]...       used in place, never copied
//	file:///dir/image.erofs[,device=/dir/blob]...
//	[oci://]host[:port]/name[:tag][@sha256:...]
//	https://host[:port]/path[?query]#sha256:...
//
// What is on the node is returned without looking at the DockerConfig: whether
// a caller may have it is [Store.Authorize]'s question. One blob is pulled once
// however many callers wait for it, and the pull stops when none waits any
// more. All errors of this package may come out.
func (s *Store) Acquire(ctx context.Context, ref string, opts AcquireOptions) (*Image, error) {
	r, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	policy, err := ParsePullPolicy(string(opts.Policy))
	if err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.end()
	ctx, stop := s.bound(ctx)
	defer stop()
	if err := ended(ctx); err != nil {
		return nil, fmt.Errorf("image %s: %w", r, err)
	}
	if r.isPath() {
		return s.openInPlace(ctx, r)
	}
	return s.acquireRemote(ctx, r, policy, opts)
}

func (s *Store) acquireRemote(ctx context.Context, ref reference, policy PullPolicy, opts AcquireOptions) (*Image, error) {
	rec, have := s.lookup(ref)
	if have {
		// Held from here on, it is there until it is open, unless it was just evicted.
		release, err := s.hold(ctx, imageID(rec.Blob))
		if err != nil {
			return nil, err
		}
		defer release()
		have = s.blobPresent(rec.Blob, rec.Size)
	}
	if have && (policy != Always || ref.digest != "") {
		return s.openStored(ref, rec)
	}
	if policy == Never && opts.Lazy && rec.Blob != "" && s.partialPresent(rec.Blob, rec.Size) {
		release, err := s.hold(ctx, imageID(rec.Blob))
		if err != nil {
			return nil, err
		}
		defer release()
		reg, err := s.newRegistry(ref, Credentials{opts.DockerConfig, opts.Tokens})
		if err != nil {
			return nil, err
		}
		return s.acquireLazy(ctx, ref, reg, rec, true)
	}
	if policy == Never {
		return nil, fmt.Errorf("%w: %s is not on this node and the pull policy is Never; use IfNotPresent, or pull it on this node before", ErrNotFound, ref)
	}
	reg, err := s.newRegistry(ref, Credentials{opts.DockerConfig, opts.Tokens})
	if err != nil {
		return nil, err
	}
	if have {
		now, err := reg.head(ctx)
		if err != nil {
			return nil, err
		}
		if now == rec.Resolved {
			return s.openStored(ref, rec)
		}
	}
	return s.fetch(ctx, ref, reg, opts)
}

// fetch brings an image that the store does not have into it, or begins to, and opens
// it.
func (s *Store) fetch(ctx context.Context, ref reference, reg *registryClient, opts AcquireOptions) (_ *Image, err error) {
	s.counters.pulls.begin()
	defer func() { s.counters.pulls.end(err) }()
	opts.Progress.set(func() string { return "its registry is asked what it is" })
	p, err := reg.planOf(ctx)
	if err != nil {
		return nil, err
	}
	if p.convert {
		return s.acquireConverted(ctx, ref, reg, p, opts.Progress)
	}
	rec := p.rec
	release, err := s.hold(ctx, imageID(rec.Blob))
	if err != nil {
		return nil, err
	}
	defer release()
	if opts.Lazy && rec.Size >= minLazy {
		img, err := s.acquireLazy(ctx, ref, reg, rec, false)
		if err != nil {
			return nil, err
		}
		if err := s.remember(ref, rec); err != nil {
			img.Release()
			return nil, err
		}
		return img, nil
	}
	if err := s.pull(ctx, reg, rec, opts.Progress); err != nil {
		return nil, err
	}
	if err := s.remember(ref, rec); err != nil {
		return nil, err
	}
	return s.openStored(ref, rec)
}

// acquireConverted opens the image that is made of the layers of p.
func (s *Store) acquireConverted(ctx context.Context, ref reference, reg *registryClient, p plan, progress *Progress) (*Image, error) {
	rec, release, err := s.convert(ctx, reg, p, progress)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := s.remember(ref, rec); err != nil {
		return nil, err
	}
	return s.openStored(ref, rec)
}

// Authorize asks the registry, with a HEAD of the manifest, or the web server
// whether these credentials or the node's own
// may read ref: what is cached for one pod is not thereby another's. Mirrors are
// asked only while the registry can't be reached, since one may give to all what
// the registry gives to some. nil for a path. The error wraps
// [ErrUnauthorized], [ErrNotFound], [ErrUnavailable] or one of the input's.
func (s *Store) Authorize(ctx context.Context, ref string, c Credentials) error {
	r, err := parseReference(ref)
	if err != nil || r.isPath() {
		return err
	}
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	ctx, stop := s.bound(ctx)
	defer stop()
	reg, err := s.newRegistry(r, c)
	if err != nil {
		return err
	}
	return reg.authorize(ctx)
}

// ended is ctx's error, with what ended it.
func ended(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, ErrInterrupted) {
		return cause
	}
	return ctx.Err()
}
