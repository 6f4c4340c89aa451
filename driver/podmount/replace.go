package podmount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Request asks for the dead mounts of a namespace to be replaced.
type Request struct {
	// PID is a process in the namespace, whose inode number is Namespace: another
	// process may have the number by now. 0 is the namespace of this process.
	PID       int    `json:"pid"`
	Namespace uint64 `json:"namespace"`
	Dead      Dead   `json:"dead"`
	// Front is the path, in this process' namespace, of the mount that shows the same
	// as the dead one did.
	Front string `json:"front"`
}

// Report tells what became of the dead mounts of a namespace, by mount points as its
// processes see them.
type Report struct {
	Replaced []string `json:"replaced"`
	Left     []Left   `json:"left"`
}

// Left is a dead mount that is as it was.
type Left struct {
	Mountpoint string `json:"mountpoint"`
	Why        string `json:"why"`
}

// Why mounts are left.
var (
	errIDMapped      = errors.New("the mount is id-mapped")
	errUserNamespace = errors.New("the mount namespace is one of another user namespace")
	errOtherMount    = errors.New("its path leads to something else")
)

// moveMountBeneath is MOVE_MOUNT_BENEATH of Linux 6.5. Tests make it what no kernel knows.
var moveMountBeneath = 0x200

// replace replaces the dead mounts of a namespace. In this process' own, only those of
// something below the dead directory are: the others are the caller's, who mounts them
// where they were.
//
// It may wait for file systems of the namespace for ever, and must run in a process that
// is of no other use.
//
// Errors: that the namespace is gone or can't be entered. What is wrong with one mount is
// in the report.
func replace(req Request) (rep Report, err error) {
	proc, err := openProc()
	if err != nil {
		return rep, err
	}
	defer func() { _ = unix.Close(proc) }()
	own, name := req.PID == 0, "self/ns/mnt"
	if !own {
		name = fmt.Sprintf("%d/ns/mnt", req.PID)
	}
	ns, err := unix.Openat(proc, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return rep, fmt.Errorf("mount namespace of process %d: %w", req.PID, err)
	}
	defer func() { _ = unix.Close(ns) }()
	if inode, err := inodeNumber(ns); err != nil || inode != req.Namespace {
		return rep, fmt.Errorf("mount namespace of process %d: it is %d, want %d: %w", req.PID, inode, req.Namespace, err)
	}
	refused, err := otherUsers(proc, ns)
	if err != nil {
		return rep, err
	}
	// Copies of the front can be made from here alone, so what is in the namespace has
	// a thread of its own.
	copies := make(chan copyRequest)
	var inside error
	go func() {
		defer close(copies)
		runtime.LockOSThread() // never unlocked: the thread ends
		if !own {
			if inside = enter(ns); inside != nil {
				return
			}
		}
		r := replacer{proc: proc, req: req, own: own, refused: refused, copies: copies}
		inside = r.run(&rep)
	}()
	for c := range copies {
		fd, err := copyMount(req.Front, c.sub, c.attributes)
		c.done <- copied{fd, err}
	}
	return rep, inside
}

type copyRequest struct {
	sub        string
	attributes uint64
	done       chan copied
}

type copied struct {
	fd  int
	err error
}

func openProc() (int, error) {
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/proc: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("/proc: it is no procfs (type %#x): %w", st.Type, err)
	}
	return fd, nil
}

func inodeNumber(fd int) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Ino, err
}

// otherUsers returns errUserNamespace as refused where a mount namespace is not of this
// process' user namespace.
func otherUsers(proc, ns int) (refused, err error) {
	users, err := unix.IoctlRetInt(ns, unix.NS_GET_USERNS)
	if errors.Is(err, unix.EPERM) { // of none that is visible from here
		return errUserNamespace, nil
	}
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	defer func() { _ = unix.Close(users) }()
	inode, err := inodeNumber(users)
	if err != nil {
		return nil, err
	}
	var own unix.Stat_t
	if err := unix.Fstatat(proc, "self/ns/user", &own, 0); err != nil {
		return nil, fmt.Errorf("own user namespace: %w", err)
	}
	if own.Ino != inode {
		return errUserNamespace, nil
	}
	return nil, nil
}

// enter takes the thread into a mount namespace; its root is then the namespace's.
func enter(ns int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("a thread's own root directory: %w", err)
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter a mount namespace: %w", err)
	}
	return nil
}

// copyMount returns a copy of the mount at front, or of a directory or file below it,
// that is mounted nowhere and has some attributes at least.
func copyMount(front, sub string, attributes uint64) (int, error) {
	at, err := unix.Open(front, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("the new mount at %s: %w", front, err)
	}
	defer func() { _ = unix.Close(at) }()
	if sub != "" {
		below, err := unix.Openat2(at, sub, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
		if err != nil {
			return -1, fmt.Errorf("%s in the new mount: %w", sub, err)
		}
		defer func() { _ = unix.Close(below) }()
		at = below
	}
	fd, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("copy the new mount: %w", err)
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attributes, Attr_clr: unix.MOUNT_ATTR__ATIME})
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("flags of the new mount: %w", err)
	}
	return fd, nil
}

// attributes are those of mount_setattr(2) for the options of /proc/PID/mountinfo.
func attributes(options string) uint64 {
	set := uint64(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV)
	atime := uint64(unix.MOUNT_ATTR_STRICTATIME)
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "nosuid":
			set |= unix.MOUNT_ATTR_NOSUID
		case "noexec":
			set |= unix.MOUNT_ATTR_NOEXEC
		case "nosymfollow":
			set |= unix.MOUNT_ATTR_NOSYMFOLLOW
		case "nodiratime":
			set |= unix.MOUNT_ATTR_NODIRATIME
		case "relatime":
			atime = unix.MOUNT_ATTR_RELATIME
		case "noatime":
			atime = unix.MOUNT_ATTR_NOATIME
		}
	}
	return set | atime
}

// replacer is in the namespace.
type replacer struct {
	proc    int
	req     Request
	own     bool
	refused error
	copies  chan<- copyRequest
}

func (r *replacer) run(rep *Report) error {
	mounts, err := uncovered(
		func() (io.ReadCloser, error) { return r.open("thread-self/mountinfo") },
		func(i *mountinfo.Info) bool {
			sub, ok := r.req.Dead.in(i.Major, i.Minor, i.Root)
			return ok && (sub != "" || !r.own)
		})
	if err != nil {
		return fmt.Errorf("mounts of the namespace: %w", err)
	}
	for _, m := range mounts {
		if err := r.replace(m); err != nil {
			rep.Left = append(rep.Left, Left{m.Mountpoint, err.Error()})
		} else {
			rep.Replaced = append(rep.Replaced, m.Mountpoint)
		}
	}
	return nil
}

// open opens a file of /proc, which the namespace may not have, or have another.
func (r *replacer) open(name string) (*os.File, error) {
	fd, err := unix.Openat(r.proc, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (r *replacer) replace(m *mountinfo.Info) error {
	sub, _ := r.req.Dead.in(m.Major, m.Minor, m.Root)
	switch {
	case r.refused != nil:
		return r.refused
	case strings.Contains(","+m.Options+",", ",idmapped,"):
		return errIDMapped
	}
	at, err := r.find(m)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	c := copyRequest{sub: sub, attributes: attributes(m.Options), done: make(chan copied)}
	r.copies <- c
	made := <-c.done
	if made.err != nil {
		return made.err
	}
	defer func() { _ = unix.Close(made.fd) }()
	const both = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(made.fd, "", at, "", both|moveMountBeneath); err == nil {
		return r.detach(m)
	}
	// Before Linux 6.5, or where the kernel would have to do it at other places, too.
	if err := unix.MoveMount(made.fd, "", at, "", both); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

// find opens the mount, if its path leads to it.
func (r *replacer) find(m *mountinfo.Info) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, m.Mountpoint, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("%w: %w", errOtherMount, err)
	}
	id, err := r.mountID(fd)
	if err == nil && id != m.ID {
		err = errOtherMount
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mountID tells which mount a descriptor is of, without asking its file system.
func (r *replacer) mountID(fd int) (id int, err error) {
	f, err := r.open(fmt.Sprintf("thread-self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	text, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return parseMountID(string(text))
}

func parseMountID(fdinfo string) (id int, err error) {
	for line := range strings.Lines(fdinfo) {
		if _, err := fmt.Sscanf(line, "mnt_id: %d", &id); err == nil {
			return id, nil
		}
	}
	return 0, errors.New("fdinfo has no mnt_id")
}

// detach takes the dead mount off what is beneath it.
func (r *replacer) detach(m *mountinfo.Info) error {
	at, err := r.find(m) // still on top
	if err != nil {
		return fmt.Errorf("the new mount is beneath the dead one: %w", err)
	}
	// Nothing may be open of it here when it goes.
	_ = unix.Close(at)
	if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("the new mount is beneath the dead one: detach that: %w", err)
	}
	return nil
}
