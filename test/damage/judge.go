package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// fsckTime is how long fsck.erofs may take for an image of some 300 KB, of which
// it takes 20 ms when it is good.
const fsckTime = 5 * time.Second

// verifyTime is the same for erofs.Verify.
const verifyTime = 20 * time.Second

// outcome is what became of a damaged image.
type outcome struct {
	damage
	fsck    string // what fsck.erofs said first, "" when it has found nothing
	crash   string // the signal that ended it, or that it did not end
	verify  string // the first finding of erofs.Verify, or the error of erofs.Open
	visible string // if not both have found something: a file that can't be read or is not the good image's
}

// judge writes a damaged image to the directory dir and asks both. good is what
// can be read in the good image.
func judge(ctx context.Context, im *image, d damage, dir string, good view) (outcome, error) {
	o := outcome{damage: d}
	b := d.apply(im.b)
	path := filepath.Join(dir, "damaged.erofs")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return o, err
	}
	o.fsck, o.crash = fsck(ctx, im, path)
	opened, done, err := openBytes(b, im.blob)
	if done != nil {
		defer done()
	}
	if err != nil {
		o.verify, o.visible = err.Error(), "."
		return o, ctx.Err()
	}
	limited, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	_, err = erofs.Verify(limited, opened, func(path string, err error) {
		if o.verify == "" {
			o.verify = path + ": " + err.Error()
		}
	})
	if err != nil {
		return o, fmt.Errorf("%s: verify: %w", d.name(), err)
	}
	if o.fsck == "" || o.verify == "" {
		o.visible = look(opened).differs(good)
	}
	return o, ctx.Err()
}

// fsck runs fsck.erofs in each way that checks something of its own, until it
// finds something: with attributes read as a reader reads them, with their
// entries gone through, and with digests where there are some.
func fsck(ctx context.Context, im *image, path string) (found, crash string) {
	ways := [][]string{{"--extract", "--xattrs"}, {"--extract"}}
	if im.kind.digests {
		ways = append(ways, []string{"--extract", "--xattr-inode-digest"})
	}
	for _, args := range ways {
		if im.blob != "" {
			args = append(args, "--device="+im.blob)
		}
		if found, crash = runFsck(ctx, im.tools, append(args, path)...); found != "" || crash != "" {
			break
		}
	}
	return found, crash
}

// runFsck runs fsck.erofs. It has found something when its exit code or a line
// it prints says so: of a wrong checksum only the line does.
func runFsck(ctx context.Context, t tools, args ...string) (found, crash string) {
	ctx, cancel := context.WithTimeout(ctx, fsckTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.path("fsck.erofs"), args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	line, _, _ := strings.Cut(string(bytes.TrimSpace(out)), "\n")
	var exit *exec.ExitError
	switch {
	case err == nil && bytes.Contains(out, []byte("<E>")):
		return "exit code 0: " + line, ""
	case err == nil:
		return "", ""
	case ctx.Err() != nil:
		return "", fmt.Sprintf("no end after %v", fsckTime)
	case errors.As(err, &exit) && exit.Exited():
		return "exit code 1: " + line, ""
	}
	return "", err.Error()
}

// view is what can be read of an image: of each path what is there, or that it
// can't be read.
type view map[string]string

// look reads all of an image that the damaged one may show in another way than
// the good one.
func look(im *erofs.Image) view {
	l := looker{im: im, view: make(view), dirs: make(map[uint64]bool)}
	l.path(".", im.Superblock().RootNID)
	return l.view
}

type looker struct {
	im   *erofs.Image
	view view
	dirs map[uint64]bool // that were read
}

// maxRead is the size up to which data are read: those of no good image are
// larger.
const maxRead = 1 << 20

func (l *looker) path(path string, nid uint64) {
	in, err := l.im.Inode(nid)
	if err != nil {
		l.view[path] = "error"
		return
	}
	var b strings.Builder
	fmt.Fprintln(&b, l.im.Ino(nid), in.Mode, in.UID, in.GID, in.Nlink, in.Size, in.MtimeSec, in.MtimeNsec, in.Rdev, in.Sectors())
	list, err := in.Xattrs()
	fmt.Fprintln(&b, len(list), err != nil)
	for _, x := range list {
		value, err := in.Xattr(x.Name) // by its name, as others ask for it
		fmt.Fprintf(&b, "%q %q %q %t\n", x.Name, x.Value, value, err != nil)
	}
	switch {
	case in.Size > maxRead:
	case in.IsRegular():
		h := sha256.New()
		_, err := io.Copy(h, io.NewSectionReader(in, 0, in.Size))
		fmt.Fprintf(&b, "%x %t\n", h.Sum(nil), err != nil)
	case in.IsSymlink():
		target, err := in.Readlink()
		fmt.Fprintf(&b, "%q %t\n", target, err != nil)
	case in.IsDir() && !l.dirs[nid]:
		l.dirs[nid] = true
		err := in.ReadDir(0, func(d erofs.Dirent) bool {
			fmt.Fprintf(&b, "%q %v %v\n", d.Name, d.NID, d.Type)
			if d.Name != "." && d.Name != ".." {
				_, err := in.Lookup(d.Name)
				fmt.Fprintln(&b, err != nil)
				l.path(path+"/"+d.Name, d.NID)
			}
			return true
		})
		fmt.Fprintln(&b, err != nil)
	}
	l.view[path] = b.String()
}

// differs returns a path with a difference, "" when there is none.
func (v view) differs(good view) string {
	for path, s := range good {
		if v[path] != s {
			return path
		}
	}
	for path := range v {
		if _, ok := good[path]; !ok {
			return path
		}
	}
	return ""
}
