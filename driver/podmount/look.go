package podmount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
)

// Namespace is a mount namespace of other processes, or that of this one.
type Namespace struct {
	PID    int     `json:"pid"`   // of a process in it; 0: it is this process' own
	Inode  uint64  `json:"inode"` // of /proc/PID/ns/mnt
	Mounts []Mount `json:"mounts"`
}

// Mount is a mount as the processes of its namespace see it.
type Mount struct {
	ID         int    `json:"id"`
	Major      int    `json:"major"`
	Minor      int    `json:"minor"`
	Root       string `json:"root"`
	Mountpoint string `json:"mountpoint"`
}

// Dead lists the mount points of what is dead. Those that something is mounted over are
// not among them, and in this process' own namespace only those of something below are: see
// Replace.
func (n *Namespace) Dead(d Dead) (points []string) {
	for _, m := range n.Mounts {
		if sub, ok := d.in(m.Major, m.Minor, m.Root); ok && (sub != "" || n.PID != 0) {
			points = append(points, m.Mountpoint)
		}
	}
	return points
}

// Viewer looks at the namespaces of all processes that /proc shows. It is safe for
// concurrent use; who asks while another looks shares the next look.
type Viewer struct {
	source string
	run    Helper

	mu    sync.Mutex
	began time.Time   // GUARDED_BY(mu)
	last  []Namespace // GUARDED_BY(mu)
}

// NewViewer makes a viewer of mounts with a source, as /proc/PID/mountinfo shows it.
func NewViewer(source string, run Helper) *Viewer { return &Viewer{source: source, run: run} }

// Look returns the namespaces that have such mounts, this process' first, as they are
// after the call. What is denied, or gone by the time that it is looked at, is left out,
// and so are processes at which nobody can look at the moment.
//
// Errors: those of the helper.
func (v *Viewer) Look(ctx context.Context) ([]Namespace, error) {
	asked := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.began.After(asked) {
		return v.last, nil
	}
	began := time.Now()
	answer, err := v.run(ctx, Task{Look: v.source})
	if err != nil {
		return nil, err
	}
	v.began, v.last = began, answer.Namespaces
	return v.last, nil
}

// view is what a process sees of a mount namespace: what is below its root.
type view struct{ namespace, root string }

// lookTimeout bounds the look at one process. One that executes a program of a FUSE mount
// whose server is gone cannot be looked at, nor can who tries be killed.
const lookTimeout = 2 * time.Second

// within returns what fn does, unless it takes longer than lookTimeout.
func within[T any](fn func() (T, error)) (T, error) {
	type result struct {
		val T
		err error
	}
	done := make(chan result, 1)
	go func() {
		val, err := fn()
		done <- result{val, err}
	}()
	select {
	case r := <-done:
		return r.val, r.err
	case <-time.After(lookTimeout):
		var none T
		return none, errors.New("it cannot be looked at")
	}
}

// look looks at all processes. It leaves threads that nothing can end, and is to be called
// in a process that is of no other use.
func look(source string) ([]Namespace, error) {
	own, err := viewOf("self")
	if err != nil {
		return nil, err
	}
	names, err := processes()
	if err != nil {
		return nil, err
	}
	seen := make(map[view]bool)
	found := make(map[string]*Namespace)
	for _, name := range append([]string{"self"}, names...) {
		at, err := within(func() (view, error) { return viewOf(name) })
		if err != nil || seen[at] {
			continue
		}
		seen[at] = true
		mounts, err := within(func() ([]*mountinfo.Info, error) { return mountsOf("/proc/"+name+"/mountinfo", source) })
		if err != nil || len(mounts) == 0 {
			continue
		}
		n := found[at.namespace]
		if n == nil {
			n = &Namespace{}
			if at.namespace != own.namespace {
				n.PID, _ = strconv.Atoi(name)
			}
			if n.Inode, err = inodeOf(at.namespace); err != nil {
				return nil, err
			}
			found[at.namespace] = n
		}
		n.add(mounts)
	}
	list := make([]Namespace, 0, len(found))
	for _, n := range found {
		list = append(list, *n)
	}
	slices.SortFunc(list, func(a, b Namespace) int { return a.PID - b.PID })
	return list, nil
}

func viewOf(name string) (v view, err error) {
	if v.namespace, err = os.Readlink("/proc/" + name + "/ns/mnt"); err == nil {
		v.root, err = os.Readlink("/proc/" + name + "/root")
	}
	return v, err
}

// processes lists the numbers of all.
func processes() (names []string, err error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	all, err := dir.Readdirnames(-1)
	for _, name := range all {
		if name[0] >= '1' && name[0] <= '9' {
			names = append(names, name)
		}
	}
	return names, err
}

// inodeOf takes the inode number out of "mnt:[4026531841]".
func inodeOf(link string) (n uint64, err error) {
	_, err = fmt.Sscanf(link, "mnt:[%d]", &n)
	return n, err
}

// add adds mounts that another process of the namespace may see, too.
func (n *Namespace) add(mounts []*mountinfo.Info) {
	for _, m := range mounts {
		if !slices.ContainsFunc(n.Mounts, func(o Mount) bool { return o.ID == m.ID }) {
			n.Mounts = append(n.Mounts, Mount{m.ID, m.Major, m.Minor, m.Root, m.Mountpoint})
		}
	}
}

// mountsOf lists the mounts of a source that nothing is mounted over. It reads the table
// line by line, since a pod may make it long.
func mountsOf(file, source string) ([]*mountinfo.Info, error) {
	return uncovered(func() (io.ReadCloser, error) { return os.Open(file) },
		func(i *mountinfo.Info) bool { return i.Source == source })
}

// uncovered lists the mounts of a table that are wanted, without those that another is
// mounted over.
func uncovered(open func() (io.ReadCloser, error), wanted func(*mountinfo.Info) bool) ([]*mountinfo.Info, error) {
	mounts, err := filtered(open, wanted)
	if err != nil || len(mounts) == 0 {
		return nil, err
	}
	byID := make(map[int]*mountinfo.Info, len(mounts))
	for _, m := range mounts {
		byID[m.ID] = m
	}
	covers, err := filtered(open, func(i *mountinfo.Info) bool {
		below := byID[i.Parent]
		return below != nil && below != byID[i.ID] && below.Mountpoint == i.Mountpoint
	})
	if err != nil {
		return nil, err
	}
	for _, c := range covers {
		mounts = slices.DeleteFunc(mounts, func(m *mountinfo.Info) bool { return m.ID == c.Parent })
	}
	return mounts, nil
}

func filtered(open func() (io.ReadCloser, error), wanted func(*mountinfo.Info) bool) ([]*mountinfo.Info, error) {
	f, err := open()
	if err != nil {
		return nil, err
	}
	list, err := mountinfo.GetMountsFromReader(f, func(i *mountinfo.Info) (skip, stop bool) { return !wanted(i), false })
	return list, errors.Join(err, f.Close())
}
