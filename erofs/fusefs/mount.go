package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// requestSize is the largest READ, of a reader with O_DIRECT, and what is read ahead at
// a time.
const requestSize = 1 << 20

// Source and FSType are how the content mount shows in /proc/self/mountinfo.
const (
	Source = "erofs-csi"
	FSType = "fuse.erofs-csi"
)

// Mount is a mounted FS or Passthrough, served until it is unmounted.
type Mount struct {
	dir     string
	device  uint64   // st_dev: major and minor as unix.Mkdev makes them
	channel *os.File // /dev/fuse, beside the descriptor that the server has
	state   State
	fd      int // of /dev/fuse; server's
	server  *fuse.Server
	keeping *requestKeeping // nil: requests under way end with the process
	own     *journaled      // answers requests in place of server; nil: server does
	served  chan struct{}   // closed when the last request has been answered
}

// Serve mounts fs at dir, read-only, and answers its requests until Unmount.
// The caller must have CAP_SYS_ADMIN, and must keep dir from everybody else: the
// content mount holds every file of the domain, whatever its mode was. ctx bounds
// the start alone.
func Serve(ctx context.Context, fs *FS, dir string) (*Mount, error) {
	m, err := mountAndServe(ctx, fs, dir, contentOptions(), fs.keeping)
	if err != nil {
		return nil, err
	}
	go fs.keepCap(m.served)
	return m, nil
}

// ServePassthrough mounts p at dir, as Serve does.
//
// Errors: ErrNoPassthrough, which leaves nothing mounted.
func ServePassthrough(ctx context.Context, p *Passthrough, dir string) (*Mount, error) {
	m, err := mountAndServe(ctx, p, dir, passthroughOptions(), nil) // its kernels can send requests again
	if err != nil {
		return nil, err
	}
	if err := p.start(m); err != nil {
		return nil, errors.Join(err, m.Unmount(ctx))
	}
	return m, nil
}

// start makes it ready to open files.
func (p *Passthrough) start(m *Mount) error {
	if err := p.check(); err != nil {
		return err
	}
	p.device.Store(int64(m.fd))
	o, err := startOpeners(m.fd)
	if err == nil {
		p.openers.Store(o)
	}
	return err
}

func mountAndServe(ctx context.Context, fs fuse.RawFileSystem, dir string, options *fuse.MountOptions, keeping *requestKeeping) (*Mount, error) {
	channel, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w (is the fuse module loaded?)", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions,max_read=%d",
		channel.Fd(), os.Geteuid(), os.Getegid(), options.MaxWrite)
	if err := unix.Mount(Source, dir, FSType, unix.MS_RDONLY, opts); err != nil {
		_ = channel.Close()
		return nil, fmt.Errorf("mount %s at %s: %w", FSType, dir, err)
	}
	m := &Mount{dir: dir, channel: channel, keeping: keeping, served: make(chan struct{})}
	if err := m.begin(fs, options); err != nil {
		_ = channel.Close()
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		return nil, fmt.Errorf("start the FUSE session at %s: %w", dir, err)
	}
	m.serve()
	if err := m.identify(); err != nil {
		return nil, errors.Join(err, m.Unmount(ctx))
	}
	return m, nil
}

// serve answers requests until the session ends.
func (m *Mount) serve() {
	go func() {
		if m.own != nil {
			if err := m.own.serve(); err != nil {
				log.Printf("%s: %v", m.dir, err)
			}
		}
		m.server.Serve() // after own, it finds that the session has ended
		_ = m.channel.Close()
		close(m.served)
	}()
}

// identify finds out the device number. Not by stat(2), which would ask our own server.
func (m *Mount) identify() error {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(m.dir))
	if err != nil || len(infos) == 0 {
		return fmt.Errorf("find the mount at %s in /proc/self/mountinfo: %w", m.dir, err)
	}
	m.device = unix.Mkdev(uint32(infos[0].Major), uint32(infos[0].Minor))
	return nil
}

// contentOptions are those of a content mount.
func contentOptions() *fuse.MountOptions {
	o := serverOptions()
	o.MaxWrite = requestSize
	// A stack depth above 0 would keep overlayfs from stacking a container's
	// root on a front, and a Passthrough from reading from here.
	o.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	return o
}

// passthroughOptions are those of a Passthrough. Its stack depth is 1, so that the
// overlay of a container can be on top, which is as deep as the kernel lets file
// systems be stacked.
func passthroughOptions() *fuse.MountOptions {
	o := serverOptions()
	o.MaxWrite = 128 << 10 // no reads, but listings
	o.MaxStackDepth = 1
	return o
}

func serverOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		FsName:               Source,
		Name:                 "erofs-csi",
		MaxBackground:        64,
		DisableSplice:        true, // our replies are bytes in memory: the pipe would be in the way
		EnableSymlinkCaching: true,
		EnableAcl:            true,
		// Nothing changes behind the kernel: it must not drop pages for a new mtime.
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT,
		// The kernel alone checks permissions, by the ids that the mount shows, so
		// that trees may be mounted with others (Linux 6.12).
		IDMappedMount: true,
		PanicHandler:  panicked,
	}
}

// Dir is where it is mounted.
func (m *Mount) Dir() string { return m.dir }

// SetReadahead sets the kernel's readahead for this superblock, which INIT can only
// lower. bytes is rounded down to KiB.
func (m *Mount) SetReadahead(bytes int) error {
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(m.device), unix.Minor(m.device))
	return os.WriteFile(path, []byte(strconv.Itoa(bytes>>10)), 0o644) //nolint:gosec // a sysfs attribute's own mode
}

// Window is the readahead that a content mount is meant for, in bytes.
func (m *Mount) Window() int { return windowSize }

// IDMappable tells whether mounts of it can be id-mapped (Linux 6.12).
func (m *Mount) IDMappable() bool {
	return m.server.KernelSettings().Flags64()&fuse.CAP_ALLOW_IDMAP != 0
}

// Alive returns an error when the session has ended, by Unmount or because
// somebody aborted the connection: nothing answers reads any more.
func (m *Mount) Alive() error {
	select {
	case <-m.served:
		return fmt.Errorf("the FUSE session of %s has ended", m.dir)
	default:
		return nil
	}
}

// Unmount takes the mount away and waits until the last request is answered. Busy
// (EBUSY) is retried until ctx ends; then the connection is aborted, which fails
// whatever still waits for us with ENOTCONN rather than leave it unkillable.
func (m *Mount) Unmount(ctx context.Context) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Unmount(m.dir, unix.UMOUNT_NOFOLLOW)
		if err == nil || err == unix.EINVAL { // EINVAL: not mounted any more
			break
		}
		if err != unix.EBUSY {
			return fmt.Errorf("unmount %s: %w", m.dir, err)
		}
		select {
		case <-ctx.Done():
			_ = unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			return m.abort(fmt.Errorf("unmount %s: busy: %w", m.dir, ctx.Err()))
		case <-time.After(min(wait, 100*time.Millisecond)):
		}
	}
	select {
	case <-m.served:
		return nil
	case <-ctx.Done():
		return m.abort(fmt.Errorf("unmount %s: its superblock is still in use: %w", m.dir, ctx.Err()))
	}
}
