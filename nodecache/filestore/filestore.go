// Package filestore keeps contents as plain files, one directory a domain, for the
// kernel to serve by itself: as a data-only layer of overlayfs, before the content
// mount, a file is read at the speed of the disk's own file system.
//
// It is a cache. Whatever is in it can be had elsewhere, so that a file is left out
// when there is no room, and removed when others need it. A file that was removed
// goes on to serve who has opened it.
//
// # On disk
//
//	<dir>/<32 hex digits of a domain>/<name>   mode 0444: complete, verified, on disk
//	                                           mode 0400: not yet on disk
//
// A file gets its name when its bytes are verified, and its mode when they have
// reached the disk. Open removes what has another mode, another size than it says,
// or no name of ours, so that a power cut leaves nothing half behind.
//
// # Limits
//
// One process owns the directory. About 200 bytes of memory a file.
package filestore

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	// ErrFull says that a file does not fit: what is there is in use, or the disk
	// has to stay free.
	ErrFull = errors.New("no room in the store of files")
	// ErrMismatch says that a content is not the one that was announced.
	ErrMismatch = errors.New("the content is not what it should be")
	// ErrBusy says that the file is just being written.
	ErrBusy = errors.New("the file is being written")
)

// Config says where a store is and how much it may take.
type Config struct {
	Dir     string // made if need be; belongs to the store alone
	Limit   int64  // bytes of all files
	MinFree int64  // bytes of the file system that it leaves free
}

// Store is the files of all domains. It is safe for concurrent use.
type Store struct {
	cfg Config

	mu    sync.Mutex
	files map[fileID]*file // GUARDED_BY(mu)
	bytes int64            // of files, also of those being written; GUARDED_BY(mu)
	clock int64            // orders uses; GUARDED_BY(mu)

	written chan *os.File // to be brought to disk
	closed  chan struct{}
	syncer  sync.WaitGroup
}

type fileID struct{ layer, name string }

// file is a file of the store, or one being written.
type file struct {
	size    int64 // on disk
	holds   int
	used    int64
	writing bool
}

// Modes of files.
const (
	modeNew    = 0o400
	modeOnDisk = 0o444
)

// layerName and fileName are the names of ours. A file's name ends with its size.
var (
	layerName = regexp.MustCompile(`^[0-9a-f]{32}$`)
	fileName  = regexp.MustCompile(`^/[0-9a-f]{2}/[0-9a-f]{62}-([0-9a-f]{1,16})$`)
)

// Open opens a store, and removes from its directory what is no complete file of
// it, and the files that are longest unused where they are more than the limit.
func Open(cfg Config) (*Store, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("store of files: %w", err)
	}
	s := &Store{cfg: cfg, files: make(map[fileID]*file), written: make(chan *os.File, 16), closed: make(chan struct{})}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("store of files: %w", err)
	}
	s.mu.Lock()
	for s.bytes > cfg.Limit && s.evictOne() {
	}
	s.mu.Unlock()
	s.syncer.Go(s.syncWritten)
	return s, nil
}

// Close waits until the files have reached the disk that were put before. Those put
// later are gone when the store is opened again. It must be called once.
func (s *Store) Close() {
	close(s.closed)
	s.syncer.Wait()
}

// Size returns how many bytes the files have, and how many they may have.
func (s *Store) Size() (bytes, limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes, s.cfg.Limit
}

// scan fills in files from the directory.
func (s *Store) scan() error {
	type found struct {
		id    fileID
		size  int64
		mtime int64
	}
	var all []found
	err := filepath.WalkDir(s.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == s.cfg.Dir {
			return err
		}
		rel := path[len(s.cfg.Dir)+1:]
		layer, name := rel[:min(len(rel), 32)], rel[min(len(rel), 32):]
		if d.IsDir() && layerName.MatchString(layer) && len(name) <= 3 {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		m := fileName.FindStringSubmatch(name)
		if m != nil && layerName.MatchString(layer) && info.Mode() == modeOnDisk {
			if size, err := strconv.ParseInt(m[1], 16, 64); err == nil && size == info.Size() {
				all = append(all, found{fileID{layer, name}, onDisk(size), info.ModTime().UnixNano()})
				return nil
			}
		}
		err = os.RemoveAll(path) //nolint:gosec // the directory belongs to us alone
		if err != nil && !errors.Is(err, unix.EROFS) {
			return err // what can't be removed there is not used either
		}
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.mtime, b.mtime) })
	for _, f := range all {
		s.clock++
		s.files[f.id] = &file{size: f.size, used: s.clock}
		s.bytes += f.size
	}
	return err
}

// onDisk is the size of a file in blocks of 4 KiB.
func onDisk(size int64) int64 { return (size + 4095) &^ 4095 }

// evictOne removes the file that nobody holds and that is unused for the longest.
// s.mu is held.
func (s *Store) evictOne() bool {
	var oldest fileID
	var found *file
	for id, f := range s.files {
		if f.holds == 0 && !f.writing && (found == nil || f.used < found.used) {
			oldest, found = id, f
		}
	}
	if found == nil {
		return false
	}
	s.remove(oldest)
	return true
}

// remove takes a file away; s.mu is held. One that can't be removed is forgotten all
// the same: the next Open finds it again.
func (s *Store) remove(id fileID) {
	s.bytes -= s.files[id].size
	delete(s.files, id)
	_ = os.Remove(s.path(id))
}

func (s *Store) path(id fileID) string { return filepath.Join(s.cfg.Dir, id.layer) + id.name }

// reserve makes room for a file; s.mu is held.
func (s *Store) reserve(size int64) error {
	if size > s.cfg.Limit {
		return fmt.Errorf("%w: it may have %d bytes, the file has %d", ErrFull, s.cfg.Limit, size)
	}
	for s.bytes+size > s.cfg.Limit {
		if !s.evictOne() {
			return fmt.Errorf("%w: of the %d bytes that it may have %d are in use", ErrFull, s.cfg.Limit, s.bytes)
		}
	}
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(s.cfg.Dir, &st); err != nil {
			return &os.PathError{Op: "statfs", Path: s.cfg.Dir, Err: err}
		}
		if st.Bavail*uint64(st.Bsize) >= uint64(size+s.cfg.MinFree) { //nolint:gosec // both are positive
			return nil
		}
		if !s.evictOne() {
			return fmt.Errorf("%w: the disk has %d bytes free, of which %d stay so", ErrFull, st.Bavail*uint64(st.Bsize), s.cfg.MinFree) //nolint:gosec // a size
		}
	}
}

// Layer is the files of one domain.
type Layer struct {
	store *Store
	name  string
}

// Layer returns the layer of a domain, whose directory it makes.
func (s *Store) Layer(domain string) (*Layer, error) {
	sum := sha256.Sum256([]byte(domain))
	l := &Layer{store: s, name: hex.EncodeToString(sum[:16])}
	if err := os.MkdirAll(l.Dir(), 0o700); err != nil {
		return nil, fmt.Errorf("store of files: %w", err)
	}
	return l, nil
}

// Dir is the directory of the layer, in which files are found by their names.
func (l *Layer) Dir() string { return filepath.Join(l.store.cfg.Dir, l.name) }

// Hold tells whether the layer has a file, which then stays until Release.
func (l *Layer) Hold(name string) bool {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[fileID{l.name, name}]
	if f == nil || f.writing {
		return false
	}
	s.hold(l, name, f)
	return true
}

// hold counts a use; s.mu is held.
func (s *Store) hold(l *Layer, name string, f *file) {
	if f.holds == 0 {
		// So that the next process knows; where it fails, the order is a little wrong.
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, s.path(fileID{l.name, name}), nil, unix.AT_SYMLINK_NOFOLLOW)
	}
	s.clock++
	f.holds++
	f.used = s.clock
}

// Release takes back one Hold or Put.
func (l *Layer) Release(name string) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[fileID{l.name, name}]; f != nil && f.holds > 0 {
		f.holds--
	}
}

// Remove takes away a file, whoever holds it: nobody finds it any more, and who has
// opened it keeps it.
func (l *Layer) Remove(name string) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	id := fileID{l.name, name}
	if f := s.files[id]; f != nil && !f.writing {
		s.remove(id)
	}
}
