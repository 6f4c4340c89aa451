package main

import (
	"bytes"
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

	file string
}

func recordFile(stateDir, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(stateDir, "targets", hex.EncodeToString(sum[:16])+".json")
}

// recordTarget notes that this process has bound a front onto dir.
func recordTarget(stateDir, dir string, device uint64) (*targetRecord, error) {
	r := &targetRecord{Dir: dir, Device: device, PID: os.Getpid(), Started: startTime(os.Getpid()), file: recordFile(stateDir, dir)}
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

// detachLeftover takes off dir the front of a process that is gone, and
// refuses a directory onto which a living one has bound a front.
func detachLeftover(stateDir, dir string) error {
	text, err := os.ReadFile(recordFile(stateDir, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var r targetRecord
	if err := json.Unmarshal(text, &r); err != nil || r.Dir != dir {
		return nil //nolint:nilerr // written only in part, when the process was killed
	}
	device, err := deviceOf(dir)
	if err != nil || device != r.Device {
		return nil //nolint:nilerr // what it tells of is not mounted any more
	}
	if r.Started != "" && startTime(r.PID) == r.Started {
		return failf("an image is mounted on %s by process %d: stop it first, or give another directory", dir, r.PID)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("dead mount at %s: %w: unmount it", dir, err)
	}
	return nil
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
