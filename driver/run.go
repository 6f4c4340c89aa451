package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/driver/claims"
	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/metrics"
	"github.com/erofs-csi/erofs-csi/driver/supervise"
	"github.com/erofs-csi/erofs-csi/driver/taints"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// pluginServices are the services of the plugin, which both of its processes
// name: the specification asks what the plugin has, not the process.
var pluginServices = []csi.PluginCapability_Service_Type{
	csi.PluginCapability_Service_CONTROLLER_SERVICE,
	csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
}

// RunNode serves the Identity and Node services until ctx ends; the logger is
// ctx's. It returns nil after an orderly end.
//
// The end unmounts nothing. Pods go on to run over their mounts, and the next
// RunNode with the same state directory takes these over: with a holder as they are,
// else by rebuilding them, for they die with the process. Unmounting would take the
// paths away from under pods that restart their containers meanwhile. The caller is to
// exit soon: until then the mounts live and the image store stays locked.
func RunNode(ctx context.Context, cfg Config) error {
	if err := cfg.checkNode(); err != nil {
		return err
	}
	socket, err := socketPath(cfg.Endpoint)
	if err != nil {
		return err
	}
	inline, err := parseInlinePolicy(cfg.InlineDomains, cfg.TrustedInlineNamespaces)
	if err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	storeConfig := nodecache.Config{
		Dir:          cfg.CacheDir,
		AllowedPaths: append([]string{}, cfg.AllowedPaths...), // never nil, which allows all
		PlainHTTP:    cfg.plainHTTP(),
		Registries:   cfg.Registries,
		OnEvict: func(e nodecache.Eviction) {
			log := logger.WithValues("imageID", e.ID, "references", e.References, "bytes", e.Bytes, "lastUse", e.LastUse)
			if e.Err != nil {
				log.Error(e.Err, "Cannot evict an image")
				return
			}
			log.V(2).Info("Evicted an image")
		},
	}
	if err := cfg.ImageSpace.Apply(&storeConfig); err != nil {
		return err
	}
	kept, err := connectHolder(ctx, cfg.Holder, cfg.StateDir)
	if err != nil {
		return err
	}
	store, err := openStore(ctx, storeConfig)
	if err != nil {
		return fmt.Errorf("image store %s: %w", cfg.CacheDir, err)
	}
	for _, problem := range store.Problems() {
		klog.FromContext(ctx).Info("A part of the configuration of registries can't be used", "reason", problem.Error())
	}
	// Owning the store, this is the one plugin of the node: what else is in
	// the state directory is dead.
	files, err := engine.StoreConfig(cfg.CacheDir, cfg.StoreLimit)
	if err != nil {
		return errors.Join(fmt.Errorf("store limit: %w", err), store.Close())
	}
	engineConfig := engine.Config{StateDir: cfg.StateDir, Front: cfg.Front, Files: files, Images: store}
	if kept != nil {
		engineConfig.Holder = kept
	}
	mounts, err := engine.New(ctx, engineConfig)
	if err != nil {
		return errors.Join(err, store.Close())
	}
	records := recordDir(filepath.Join(cfg.StateDir, volumesDir))
	volumes := newVolumeManager(storeAdapter{store}, engineAdapter{mounts}, sysMounter{}, records)
	volumes.pods.use(cfg.Pods)
	wait, err := volumes.Restore(ctx)
	if err != nil {
		return errors.Join(err, mounts.Close(ctx), store.Close())
	}
	server := &nodeServer{
		cfg:    cfg,
		socket: socket,
		service: &nodeService{
			nodeID: cfg.NodeID, maxVolumes: cfg.MaxVolumes, inline: inline, volumes: volumes,
			able: func() (engine.Abilities, error) { return engine.Able(cfg.Front) },
		},
	}
	if cfg.MetricsAddress != "" {
		samples := &sampling{store: store, volumes: volumes, readStatus: cfg.ReadStatus, prober: newProber(sampleTimeout)}
		source := metrics.Source{
			Version: cfg.Version, Ready: server.ready.Load, Deaths: supervise.Deaths(),
			Store: store.Counts, Engine: mounts.Counts, Volumes: volumes.byFront, Sample: samples.take,
		}
		if kept != nil {
			source.Holder = kept.Status
		}
		m := metrics.New(ctx, source)
		server.around = append(server.around, m.Observe)
		go m.Serve(ctx, cfg.MetricsAddress)
	}
	return server.run(ctx, func() {
		wait()
		if err := store.Tend(); err != nil { // what volumes use is in use by now
			logger.Error(err, "The store of images is not looked after")
		}
	})
}

// nodeServer serves the sockets of the node plugin.
type nodeServer struct {
	cfg     Config
	socket  string
	service *nodeService
	around  []grpc.UnaryServerInterceptor // of calls of the CSI socket
	ready   atomic.Bool
}

// run serves until ctx ends. restore rebuilds the volumes meanwhile; ready is
// reported when it returns.
func (n *nodeServer) run(ctx context.Context, restore func()) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 2)
	running := 0
	start := func(socket string, register func(*grpc.Server), around ...grpc.UnaryServerInterceptor) {
		running++
		go func() {
			// The end of one is the end of both.
			defer cancel()
			ended <- serve(ctx, socket, register, around...)
		}()
	}
	start(n.socket, n.register, n.around...)
	if n.cfg.RegistrationDir != "" {
		registration := &registrationService{endpoint: n.cfg.KubeletRegistrationPath}
		if registration.endpoint == "" {
			registration.endpoint = n.socket
		}
		start(filepath.Join(n.cfg.RegistrationDir, Name+"-reg.sock"), registration.register)
	}
	restore()
	n.ready.Store(true)
	klog.FromContext(ctx).V(2).Info("All volumes are restored")
	for range running {
		err = errors.Join(err, <-ended)
	}
	return err
}

func (n *nodeServer) register(server *grpc.Server) {
	csi.RegisterIdentityServer(server, &identityService{
		version: n.cfg.Version, capabilities: pluginServices, ready: n.ready.Load,
	})
	csi.RegisterNodeServer(server, n.service)
}

// RunController serves the Identity and Controller services until ctx ends;
// the logger is ctx's. It returns nil after an orderly end. It asks registries
// what images are, and, in a cluster, the Kubernetes API for claims.
func RunController(ctx context.Context, cfg Config) error {
	socket, err := socketPath(cfg.Endpoint)
	if err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	images, err := nodecache.NewResolver(nodecache.Config{PlainHTTP: cfg.plainHTTP(), Registries: cfg.Registries})
	if err != nil {
		return err
	}
	for _, problem := range images.Problems() {
		logger.Info("A part of the configuration of registries can't be used", "reason", problem.Error())
	}
	service := newControllerService(images, nil)
	reader, err := claims.New(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	if reader != nil {
		service.claims = reader
	} else {
		logger.V(2).Info("There is no Kubernetes API: StorageClasses have to name their images")
	}
	if cfg.StartupTaint != "" {
		remover, err := taints.New(cfg.Kubeconfig, Name, topologyFUSE, cfg.StartupTaint)
		if err != nil {
			return fmt.Errorf("removing the startup taint: %w", err)
		}
		go remover.Run(ctx)
	}
	return serve(ctx, socket, func(server *grpc.Server) {
		csi.RegisterIdentityServer(server, &identityService{version: cfg.Version, capabilities: pluginServices})
		csi.RegisterControllerServer(server, service)
	})
}
