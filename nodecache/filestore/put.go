package filestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// copySize is how much is read at a time.
const copySize = 1 << 20

// Put adds a file, and holds it. name is /<2 hex digits>/<62 hex digits>-<size in
// hex>, the digits being the SHA-256 of the content; r must have that content. When
// Put returns the file can be opened; it reaches the disk later.
//
// Errors: ErrFull, ErrMismatch, ErrBusy, those of r and of the disk. After one there
// is no such file.
func (l *Layer) Put(ctx context.Context, name string, r io.ReaderAt) error {
	m := fileName.FindStringSubmatch(name)
	if m == nil {
		return fmt.Errorf("store of files: %q is no name of a file", name)
	}
	size, err := strconv.ParseInt(m[1], 16, 64)
	if err != nil {
		return fmt.Errorf("store of files: %q is no name of a file", name)
	}
	id := fileID{l.name, name}
	if found, err := l.begin(id, size); found || err != nil {
		return err
	}
	put := false
	defer func() { // also when r panics
		if !put {
			l.abandon(id)
		}
	}()
	f, err := l.write(ctx, name, size, r)
	if err != nil {
		return fmt.Errorf("store of files: %w", err)
	}
	put = true
	s := l.store
	s.mu.Lock()
	entry := s.files[id]
	entry.writing = false
	s.hold(l, name, entry)
	s.mu.Unlock()
	select {
	case s.written <- f:
	case <-s.closed:
		_ = f.Close()
	}
	return nil
}

// begin reserves the room for a file, unless it is there, and held.
func (l *Layer) begin(id fileID, size int64) (found bool, err error) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[id]; f != nil {
		if f.writing {
			return false, ErrBusy
		}
		s.hold(l, id.name, f)
		return true, nil
	}
	if err := s.reserve(onDisk(size)); err != nil {
		return false, err
	}
	s.bytes += onDisk(size)
	s.files[id] = &file{size: onDisk(size), writing: true}
	return false, nil
}

func (l *Layer) abandon(id fileID) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes -= s.files[id].size
	delete(s.files, id)
}

// write makes the file and gives it its name.
func (l *Layer) write(ctx context.Context, name string, size int64, r io.ReaderAt) (*os.File, error) {
	final := l.Dir() + name
	if err := os.Mkdir(filepath.Dir(final), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	// No name matches this one: Open removes what a crash leaves.
	f, err := os.OpenFile(final+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_NOFOLLOW, modeNew)
	if err != nil {
		return nil, err
	}
	named := false
	defer func() {
		if !named {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := allocate(f, size); err != nil {
		return nil, full(err)
	}
	h := sha256.New()
	w := io.MultiWriter(f, h)
	buf := make([]byte, min(copySize, size))
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if n == 0 {
			return nil, errors.Join(io.ErrUnexpectedEOF, err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return nil, full(err)
		}
		off += int64(n)
	}
	if want := contentSum(name); !bytes.Equal(h.Sum(nil), want) {
		return nil, fmt.Errorf("%w: sha256:%x, not sha256:%x", ErrMismatch, h.Sum(nil), want)
	}
	if err := os.Rename(f.Name(), final); err != nil {
		return nil, err
	}
	named = true
	return f, nil
}

// allocate reserves the room for a file, in one piece if the disk has one. File
// systems that can't are fine.
func allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR): // by a signal of the runtime
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return nil
		}
		return err
	}
}

// full says ErrFull of a full disk.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// syncWritten brings files to the disk, one after the other.
func (s *Store) syncWritten() {
	for {
		select {
		case f := <-s.written:
			syncFile(f)
		case <-s.closed:
			for {
				select {
				case f := <-s.written:
					syncFile(f)
				default:
					return
				}
			}
		}
	}
}

// syncFile brings a file to the disk and closes it. When it can't, the file has the
// wrong mode to be there the next time.
func syncFile(f *os.File) {
	defer func() { _ = f.Close() }()
	if f.Sync() != nil {
		return
	}
	// Only now: of a file with this mode all is there, whatever happens.
	_ = f.Chmod(modeOnDisk)
	// Nobody may ever read it. Who does has opened it by now, or reads it from the
	// disk; mapped pages stay in any case.
	if unlent(f) {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
}

// unlent tells whether nobody else has the file open: it can be leased for writing.
func unlent(f *os.File) bool {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	if err == nil {
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return err == nil
}

// contentSum is the SHA-256 in a name that fileName matches.
func contentSum(name string) []byte {
	sum, err := hex.DecodeString(name[1:3] + name[4:66])
	if err != nil {
		panic(err) // fileName let it pass
	}
	return sum
}
