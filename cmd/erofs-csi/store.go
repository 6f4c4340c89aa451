package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// privatePrefix begins the names, below a cache directory that another process
// owns, of the stores of processes that mount images at paths only. The rest of
// the name is the pid.
const privatePrefix = "private-"

// openStore opens the store in dir.
func openStore(dir string, p *pull, space engine.ImageSpace) (*nodecache.Store, error) {
	cfg := nodecache.Config{Dir: dir, PlainHTTP: p.usesPlainHTTP, Registries: p.registries}
	if err := space.Apply(&cfg); err != nil {
		return nil, usagef("%v", err)
	}
	store, err := nodecache.Open(cfg)
	if errors.Is(err, nodecache.ErrLocked) {
		return nil, fmt.Errorf("%w: pass another --cache-dir", err)
	}
	return store, err
}

// endPatience is how long the end of a killed process may take after its holder has
// seen it: it closes its files one after the other.
const endPatience = 5 * time.Second

// openMountStore is openStore for images of which pathsOnly tells whether none
// comes from a registry. It waits for patience while another process owns the store. Then a store that another process owns is no obstacle:
// a private one beside it keeps what is computed about the images. cleanup
// removes that; call it after the store is closed.
func openMountStore(dir string, p *pull, space engine.ImageSpace, pathsOnly bool, patience time.Duration) (store *nodecache.Store, cleanup func(), err error) {
	store, err = openStore(dir, p, space)
	for wait := time.Millisecond; errors.Is(err, nodecache.ErrLocked) && patience > 0; wait *= 2 {
		time.Sleep(wait)
		patience -= wait
		store, err = openStore(dir, p, space)
	}
	if err == nil {
		removeStalePrivate(dir)
		return store, func() {}, nil
	}
	if !errors.Is(err, nodecache.ErrLocked) || !pathsOnly {
		return nil, nil, err
	}
	removeStalePrivate(dir)
	private := filepath.Join(dir, privatePrefix+strconv.Itoa(os.Getpid()))
	if err := os.RemoveAll(private); err != nil { // of an earlier process of this pid
		return nil, nil, err
	}
	store, err = openStore(private, p, space)
	if err != nil {
		return nil, nil, err
	}
	return store, func() { _ = os.RemoveAll(private) }, nil
}

// removeStalePrivate removes the private stores of processes that are gone.
func removeStalePrivate(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), privatePrefix)
		pid, err := strconv.Atoi(number)
		private := filepath.Join(dir, e.Name())
		if ok && err == nil && processGone(pid) && lockFree(filepath.Join(private, "lock")) {
			_ = os.RemoveAll(private)
		}
	}
}

func processGone(pid int) bool {
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// lockFree reports whether nobody holds the lock of a store: its owner may be
// alive in another pid namespace.
func lockFree(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return os.IsNotExist(err)
	}
	defer func() { _ = f.Close() }()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}
