package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// A targetRecord says, in a file below the state directory, that a process has
// bound a front onto a directory. An overlay front whose process was killed
// still lists its files and fails only at their data, so nothing about the
// mount itself tells the next process that it is dead; the record does.
type targetRecord struct {
	Dir     string `json:"dir"`
	Device  uint64 `json:"device"` // st_dev of the front; stays taken while it is mounted
	PID     int    `json:"pid"`
	Started string `json:"started"` // of the process, in clock ticks since boot
	// Holder and Name are the socket that keeps the mount and the name it has there.
	Holder string `json:"holder,omitempty"`
	Name   string `json:"name,omitempty"`

	file string
}

func recordFile(stateDir, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(stateDir, "targets", hex.EncodeToString(sum[:16])+".json")
}

// recordTarget notes that this process has bound a front onto dir.
func recordTarget(f *mountFlags, kept, dir string, device uint64) (*targetRecord, error) {
	r := &targetRecord{
		Dir: dir, Device: device, PID: os.Getpid(), Started: startTime(os.Getpid()),
		Holder: f.holder, Name: kept, file: recordFile(f.stateDir, dir),
	}
	if err := os.MkdirAll(filepath.Dir(r.file), 0o700); err != nil {
		return nil, err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return r, os.WriteFile(r.file, text, 0o600)
}

func (r *targetRecord) remove() error {
	if err := os.Remove(r.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// leftoverAt returns the record of a front that is mounted on a directory and whose
// process is gone, or nil, and refuses a directory onto which a living one has bound a
// front. It asks nothing of a file system that is mounted there.
func leftoverAt(stateDir, name string) (*targetRecord, error) {
	dir, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		link, err := os.Readlink(dir)
		if err != nil {
			return nil, err
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(dir), link)
		}
		if dir, err = filepath.Abs(link); err != nil {
			return nil, err
		}
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return nil, nil //nolint:nilerr // told by who looks for the directory itself
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	text, err := os.ReadFile(recordFile(stateDir, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &targetRecord{file: recordFile(stateDir, dir)}
	if err := json.Unmarshal(text, r); err != nil || r.Dir != dir {
		return nil, nil //nolint:nilerr // written only in part, when the process was killed
	}
	device, err := deviceOf(dir)
	if err != nil || device != r.Device {
		return nil, nil //nolint:nilerr // what it tells of is not mounted any more
	}
	if r.Started != "" && startTime(r.PID) == r.Started {
		return nil, failf("an image is mounted on %s by process %d: stop it first, or give another directory", dir, r.PID)
	}
	return r, nil
}

// end takes off the directory what is left there, and ends what a holder keeps for it.
func (r *targetRecord) end(ctx context.Context) error {
	if err := unix.Unmount(r.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("dead mount at %s: %w: unmount it", r.Dir, err)
	}
	if err := endKept(ctx, r.Holder, r.Name); err != nil {
		klog.FromContext(ctx).Error(err, "Who still uses a mount that is gone may wait for ever", "dir", r.Dir)
	}
	return r.remove()
}

// startTime is field 22 of /proc/PID/stat, "" when there is no such process.
// With the pid it names a process for the time of one boot.
func startTime(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(" "))
	fields := bytes.Fields(rest) // from field 3 on
	if len(fields) < 20 {
		return ""
	}
	return string(fields[19])
}
