package nodecache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// disk performs the steps that change a store directory, each of which a crash
// may follow. before, if set, is called ahead of each with its name and path
// and may refuse it: tests fail, kill or record there.
type disk struct {
	before func(step, path string) error

	// moving is held for reading by a rename and for writing by who counts all
	// files, directory by directory: one that moves from a directory not yet listed
	// to one that was would not be counted. A disk of a Store has one.
	moving *sync.RWMutex
}

func (d disk) step(step, path string) error {
	if d.before == nil {
		return nil
	}
	return d.before(step, path)
}

func (d disk) create(path string) (*os.File, error) {
	if err := d.step("create", path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR|noFollow, 0o600)
}

// allocate reserves size bytes for f without changing its length, so that a
// disk that can't hold them says so at once. File systems that can't are fine.
func (d disk) allocate(f *os.File, size int64) error {
	if err := d.step("allocate", f.Name()); err != nil {
		return err
	}
	for size > 0 {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return nil
		}
		return err
	}
	return nil
}

func (d disk) writeAt(f *os.File, p []byte, off int64) error {
	if err := d.step("write", f.Name()); err != nil {
		return err
	}
	_, err := f.WriteAt(p, off)
	return err
}

func (d disk) truncate(f *os.File, size int64) error {
	if err := d.step("truncate", f.Name()); err != nil {
		return err
	}
	return f.Truncate(size)
}

func (d disk) sync(f *os.File) error {
	if err := d.step("sync", f.Name()); err != nil {
		return err
	}
	return f.Sync()
}

func (d disk) rename(from, to string) error {
	if err := d.step("rename", to); err != nil {
		return err
	}
	if d.moving != nil {
		d.moving.RLock()
		defer d.moving.RUnlock()
	}
	return os.Rename(from, to)
}

func (d disk) syncDir(dir string) error {
	if err := d.step("syncdir", dir); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d disk) remove(path string) error {
	if err := d.step("remove", path); err != nil {
		return err
	}
	return os.Remove(path)
}

// removeAll is remove for what may be a directory that somebody put there.
func (d disk) removeAll(path string) error {
	if err := d.step("remove", path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// createTemp makes a new file below tmp.
func (s *Store) createTemp() (*os.File, error) {
	return s.disk.create(filepath.Join(s.dir.tmp, strconv.FormatUint(s.temps.Add(1), 36)))
}

// publish gives the temporary file f its final name, durably, and closes it.
//
// The order is what makes a name mean complete bytes: the bytes reach the disk
// (sync), then the name (rename), then the name reaches the disk (syncDir). If
// rename came first, a power cut could leave the name with a hole for bytes; if
// the caller were told before syncDir, with no name at all.
//
// After an error the file may or may not have its final name, always complete.
func (s *Store) publish(f *os.File, final string) error {
	if err := s.disk.sync(f); err != nil {
		return err
	}
	if err := s.disk.rename(f.Name(), final); err != nil {
		return err
	}
	s.unclaim(f.Name())
	if err := f.Close(); err != nil {
		return err
	}
	return s.disk.syncDir(filepath.Dir(final))
}

// writeFile makes a small file with the given content, durably.
func (s *Store) writeFile(path string, content []byte) error {
	f, err := s.createTemp()
	if err != nil {
		return err
	}
	if err := s.disk.writeAt(f, content, 0); err != nil {
		s.discard(f)
		return err
	}
	if err := s.publish(f, path); err != nil {
		s.discard(f)
		return err
	}
	return nil
}

// discard closes and removes a temporary file. If it can't be removed, the
// next Open does.
func (s *Store) discard(f *os.File) {
	_ = f.Close()
	_ = s.disk.remove(f.Name())
	s.unclaim(f.Name())
}

// full tells whether an error says that the disk or a quota is full.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// diskError says what failed, as ErrNoSpace if the disk or a quota is full.
func (s *Store) diskError(what string, err error) error {
	if full(err) {
		return fmt.Errorf("%s: %w: %s: %w", what, ErrNoSpace, s.dir.root, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
