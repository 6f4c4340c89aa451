package engine

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// ErrForged says that an image's own fingerprints are not those of its content.
var ErrForged = fingerprint.ErrForged

// kernelFront is an image mounted by the kernel's own EROFS: FrontKernel. Nothing of
// ours serves it, and it needs no content mount.
type kernelFront struct {
	users
	key       string // domainKey
	domain    string // as asked for; empty: it shares with nobody
	trusted   bool   // the image's fingerprints were not compared
	shared    bool   // mounted so that its files share
	mounted   bool
	reference string
	image     *nodecache.Image
	super     erofs.Superblock
	dir       string
	reason    string // why it shares less than it could; empty: it does not
	unmade    sync.Once
}

// kernelDomains makes the ids by which the kernel knows domains.
type kernelDomains struct{ secret [32]byte }

func newKernelDomains() (d kernelDomains) {
	_, _ = rand.Read(d.secret[:]) // never fails
	return d
}

// recall takes the secret of an engine that is gone, so that its mounts and ours share.
func (d *kernelDomains) recall(secret []byte) {
	if len(secret) == len(d.secret) {
		copy(d.secret[:], secret)
	}
}

// keepKernelDomains has the holder keep the secret.
func (e *Engine) keepKernelDomains() error {
	text, err := json.Marshal(keptMeta{Version: keptVersion, Kind: keptKernel, KernelNames: e.kernelDomains.secret[:]})
	if err != nil {
		return err
	}
	return e.cfg.Holder.Put(keptKernel, text)
}

// id is the domain_id of a domain's key: 64 hexadecimal digits, different for
// different keys and in different engines.
//
// To the kernel the files of two mounts are one when fingerprint and domain_id, one
// after the other without a mark between, are the same bytes. Ids of one length keep
// that from confusing the two, and nobody but root can know one: the kernel shows it
// nowhere.
func (d kernelDomains) id(key string) string {
	mac := hmac.New(sha256.New, d.secret[:])
	mac.Write([]byte(key))
	return hex.EncodeToString(mac.Sum(nil))
}

// mountByKernel is Mount for requests of the kernel engine.
func (e *Engine) mountByKernel(ctx context.Context, req Request) (*Front, error) {
	if req.CacheLimit != 0 {
		return nil, fmt.Errorf("%w: a cache limit, which only engine fuse can keep", ErrKernel)
	}
	select { // the kernel reads the file without asking us
	case <-req.Image.Settled():
	case <-ctx.Done():
		return nil, fmt.Errorf("mount %s: it is not complete: %w", req.Image.Reference(), context.Cause(ctx))
	}
	if err := req.Image.Spoiled(); err != nil {
		return nil, fmt.Errorf("mount %s: %w", req.Image.Reference(), err)
	}
	key := frontKey{domain: domainKey(req), image: imageKey(req.Image)}
	it, err := e.kernels.acquire(ctx, key, func() (*kernelFront, error) { return e.makeKernelFront(ctx, key, req) })
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", req.Image.Reference(), err)
	}
	f := it.val
	f.addUser(req.VolumeID)
	return &Front{
		path: f.dir, kind: FrontKernel, reason: func() string { return f.reason }, stats: statsOf(f.super),
		healthy: f.image.Changed,
		trouble: f.image.Trouble,
		release: func() error {
			f.removeUser(req.VolumeID)
			return e.kernels.release(it)
		},
	}, nil
}

// makeKernelFront mounts an image by the kernel. With a domain, what the image says
// of its content has been compared with what it holds by then, unless that is
// trusted; an image that lies is refused: it is damaged or hostile, and its bytes
// have no business in the kernel's parser.
func (e *Engine) makeKernelFront(ctx context.Context, key frontKey, req Request) (_ *kernelFront, err error) {
	start := time.Now()
	if req.Domain != "" {
		if err := checkSharing(); err != nil {
			return nil, err
		}
	}
	scan, _, err := openImage(req.Image, e.metadata)
	if err != nil {
		return nil, err
	}
	defer e.metadata.Forget(scan)
	f := &kernelFront{
		key: key.domain, domain: req.Domain, trusted: req.Trusted, reference: req.Image.Reference(),
		image: req.Image.Clone(), super: scan.Superblock(),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.unmakeKernelFront(f))
		}
	}()
	id := ""
	if req.Domain != "" {
		if f.shared, f.reason, err = e.mayShare(ctx, req, scan); err != nil {
			return nil, err
		}
		if f.shared {
			id = e.kernelDomains.id(key.domain)
		}
	}
	dir, err := e.instance.mountpoint(fmt.Sprintf("kernel-%d", e.serial.Add(1)))
	if err != nil {
		return nil, err
	}
	f.dir = dir
	note, err := mountKernel(f.image, dir, id)
	if err != nil {
		return nil, err
	}
	f.mounted = true
	f.reason = joinReasons(f.reason, note)
	if err := f.check(); err != nil {
		return nil, err
	}
	log := klog.FromContext(ctx).WithValues("image", f.reference, "domain", req.Domain, "engine", EngineKernel, "front", FrontKernel)
	if f.reason != "" {
		log = log.WithValues("reason", f.reason)
	}
	log.Info("Mounted an image", "shared", f.shared, "target", f.dir, "duration", time.Since(start))
	return f, nil
}

// mayShare tells whether the kernel may share the image's files, and why it shares
// fewer than it could.
//
// Errors: ErrForged, those of the image, or of ctx.
func (e *Engine) mayShare(ctx context.Context, req Request, im *erofs.Image) (ok bool, reason string, err error) {
	const fix = "make the image with mkfs.erofs --xattr-inode-digest=NAME"
	if !im.HasFingerprints() {
		return false, "the image has no fingerprints, so that it shares nothing: " + fix, nil
	}
	var ix *fingerprint.Index
	if !req.Trusted {
		if ix, err = e.index(ctx, req.Image); err != nil {
			return false, "", err
		}
		defer ix.Close()
	}
	claims, err := fingerprint.CheckClaims(im, ix)
	switch {
	case err != nil:
		return false, "", fmt.Errorf("what the kernel would share is not so: %w: build the image anew from a source that you trust, or use engine fuse, which shares by its own hash", err)
	case claims.Claimed == 0:
		return false, "no file of the image has a fingerprint, so that it shares nothing: " + fix, nil
	case claims.Claimed < claims.Files:
		return true, fmt.Sprintf("%d of %d files have no fingerprint, so that they share with none: %s", claims.Files-claims.Claimed, claims.Files, fix), nil
	}
	return true, "", nil
}

// check makes sure that the mount is what was asked for, and of the bytes that were
// read before.
func (f *kernelFront) check() error {
	if err := f.image.Changed(); err != nil {
		return err
	}
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != f.dir, i.Mountpoint == f.dir
	})
	if err != nil || len(infos) != 1 {
		return fmt.Errorf("%w: the mount at %s is not there: %w", ErrKernel, f.dir, errors.Join(err, os.ErrNotExist))
	}
	options := infos[0].VFSOptions
	if shares := slices.Contains(strings.Split(options, ","), "inode_share"); shares != f.shared {
		return fmt.Errorf("%w: the kernel mounted with options %q, where sharing was to be %t", ErrKernel, options, f.shared)
	}
	return nil
}

// unmakeKernelFront unmounts what was mounted. Its pages go with it, but for those
// that other mounts share.
func (e *Engine) unmakeKernelFront(f *kernelFront) (err error) {
	f.unmade.Do(func() {
		if f.mounted {
			err = unmount(f.dir)
		}
		if f.dir != "" {
			err = errors.Join(err, os.Remove(f.dir))
		}
		f.image.Release()
		klog.FromContext(e.ctx).V(2).Info("Let go of an image", "image", f.reference, "domain", f.domain, "engine", EngineKernel)
	})
	return err
}
