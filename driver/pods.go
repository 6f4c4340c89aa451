package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	mount "k8s.io/mount-utils"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/driver/podmount"
)

// podsParallel is how many namespaces are worked in at once.
const podsParallel = 4

// pods has pods that run get the new mount of a volume whose old one died. Their copies of
// that are found by its superblock's device number, which is pinned from before it is
// unmounted here until no pod has it any more.
type pods struct {
	helper podmount.Helper // nil: pods keep what is dead, and nobody looks
	viewer *podmount.Viewer
	prober *prober

	mu   sync.Mutex
	dead map[string]*deadMounts // by volume; GUARDED_BY mu
}

// deadMounts are those of one volume. left is why pods still have some.
type deadMounts struct {
	pins []pin
	left []string
}

// pin keeps a dead superblock.
type pin struct {
	podmount.Dead
	file *os.File
}

func newPods(p *prober) *pods { return &pods{prober: p, dead: make(map[string]*deadMounts)} }

// use has a helper repair pods. It is to be called before volumes are restored.
func (p *pods) use(helper podmount.Helper) {
	p.helper, p.viewer = helper, podmount.NewViewer(engine.MountSource, helper)
}

// remember pins what is mounted at a place of a volume, which is about to be unmounted as
// dead. What is not the driver's, or needs no server, it leaves.
func (p *pods) remember(ctx context.Context, mounts mounter, volumeID, path string) error {
	if p.helper == nil {
		return nil
	}
	resolved, err := p.prober.resolve(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	table, err := mounts.Table()
	if err != nil {
		return err
	}
	m, ok := table.at(resolved)
	if !ok || !isServed(m) {
		return nil
	}
	file, err := ask(ctx, p.prober, "pin "+resolved, func() (*os.File, error) { return pinMount(resolved, m.ID) })
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.dead[volumeID]
	if d == nil {
		d = &deadMounts{}
		p.dead[volumeID] = d
	}
	dead := podmount.Dead{Major: m.Major, Minor: m.Minor, Root: m.Root}
	if slices.ContainsFunc(d.pins, func(o pin) bool { return o.Dead == dead }) {
		return file.Close()
	}
	d.pins = append(d.pins, pin{dead, file})
	return nil
}

// pinMount opens the mount at path, if it is the one with the id.
func pinMount(path string, id int) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err == nil && !strings.Contains("\n"+string(text), fmt.Sprintf("\nmnt_id:\t%d\n", id)) {
		err = errors.New("another mount is there by now")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount at %s: %w", path, err), file.Close())
	}
	return file, nil
}

// forget lets go of what is dead of a volume.
func (p *pods) forget(volumeID string) {
	p.mu.Lock()
	d := p.dead[volumeID]
	delete(p.dead, volumeID)
	p.mu.Unlock()
	if d != nil {
		for _, pin := range d.pins {
			_ = pin.file.Close()
		}
	}
}

// of returns what is dead of a volume.
func (p *pods) of(volumeID string) (list []podmount.Dead, left []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.dead[volumeID]
	if d == nil {
		return nil, nil
	}
	for _, pin := range d.pins {
		list = append(list, pin.Dead)
	}
	return list, slices.Clone(d.left)
}

// repair replaces what pods have of a volume that is dead by the front. It is called with
// the volume's lock. What can't be replaced is told by condition.
func (p *pods) repair(ctx context.Context, volumeID, front string) {
	dead, _ := p.of(volumeID)
	if len(dead) == 0 {
		return
	}
	log := klog.FromContext(ctx).WithValues("volumeID", volumeID)
	spaces, err := p.viewer.Look(ctx)
	if err != nil {
		log.Error(err, "Cannot look whether pods have dead mounts")
		p.leave(volumeID, []string{"pods may have dead mounts: " + err.Error()})
		return
	}
	var mu sync.Mutex
	var left []string
	replaced := 0
	in := func(n podmount.Namespace, d podmount.Dead) {
		answer, err := p.helper(ctx, podmount.Task{Replace: &podmount.Request{PID: n.PID, Namespace: n.Inode, Dead: d, Front: front}})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			left = append(left, fmt.Sprintf("in the namespace of process %d: %v", n.PID, err))
		}
		replaced += len(answer.Report.Replaced)
		for _, l := range answer.Report.Left {
			left = append(left, fmt.Sprintf("at %s of process %d: %s", l.Mountpoint, n.PID, l.Why))
		}
	}
	var all errgroup.Group
	all.SetLimit(podsParallel)
	for _, n := range spaces {
		for _, d := range dead {
			switch {
			case len(n.Dead(d)) == 0:
			case n.PID == 0: // first: from here it may come to others
				in(n, d)
			default:
				all.Go(func() error { in(n, d); return nil })
			}
		}
	}
	_ = all.Wait() // none fails
	if replaced > 0 {
		log.Info("Replaced dead mounts in pods", "mounts", replaced)
	}
	if len(left) == 0 {
		p.forget(volumeID)
		return
	}
	log.Error(nil, "Pods have dead mounts that cannot be replaced: they have to be restarted", "reasons", left)
	p.leave(volumeID, left)
}

func (p *pods) leave(volumeID string, left []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.dead[volumeID]; d != nil {
		d.left = left
	}
}

// condition tells of pods that still have a dead mount of a volume.
func (p *pods) condition(ctx context.Context, volumeID string) condition {
	dead, left := p.of(volumeID)
	if len(left) == 0 {
		return condition{}
	}
	spaces, err := p.viewer.Look(ctx)
	if err != nil {
		return condition{}
	}
	for _, n := range spaces {
		for _, d := range dead {
			if len(n.Dead(d)) > 0 {
				return inaccessible(reasonPodMountDead, refuse(errPrecondition, "a pod that was started before the mount died keeps the dead one: restart it (%s)", strings.Join(left, "; ")))
			}
		}
	}
	p.forget(volumeID) // the pods are gone
	return condition{}
}

// isServed tells whether a mount of the table is one that dies with its server.
func isServed(m mount.MountInfo) bool {
	return m.Source == engine.MountSource && slices.Contains(engine.ServedFSTypes, m.FsType)
}
