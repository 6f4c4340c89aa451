package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// runningRounds bounds the rounds of measureRunning: a start and a load of two
// servers take half a minute.
const runningRounds = 3

// scriptPatience bounds a call of the script.
const scriptPatience = 3 * time.Minute

// measureRunning runs the server of each pair from mounts of both its versions at
// once, by plain images, and looks, after both had some load, at the page cache that their memory
// cgroup is charged with and at the sum of the servers' proportional set sizes.
//
// The script of -workload is called as SCRIPT NAME ROOT PORT start|load|stop. Load
// comes from outside of the cgroup. A run before those that count brings the programs
// of the script into memory.
func (b *bench) measureRunning(ctx context.Context, t *table) (err error) {
	if b.script == "" {
		progress("left out: no -workload SCRIPT that starts the servers of the pairs")
		return nil
	}
	g, err := enterGroup()
	if err != nil {
		return fmt.Errorf("-only workloads: %w", err)
	}
	defer func() { err = errors.Join(err, g.leave()) }()
	m := t.matrix("Both versions' servers of a pair running, after some load. Page cache: of all files. In parentheses: of the kernel's EROFS, not shared.")
	for _, p := range b.corpus {
		progress("%s: the servers of %s", t.Title, p.name)
		images := p.kind(plain, plain)
		holders := []holder{b.kernelHolder(notShared, b.oldKernelMount), b.ourHolder("ours", t.Front, domain)}
		if share, err := b.canShare(images[0]); err != nil {
			return err
		} else if share {
			holders = append(holders, b.kernelHolder(kernelShare, b.sharedMount))
		}
		if err := b.measurePairRunning(ctx, g, m, p.name, images, holders); err != nil {
			if ctx.Err() != nil {
				return err
			}
			progress("%s: %v", p.name, err)
			t.note("Left out, the servers of %s: they did not run.", p.name)
		}
	}
	return nil
}

// beforeStart is what mounting alone brings; a ratio of that says nothing.
const beforeStart = "page cache before the servers start"

// measurePairRunning adds the rows of one pair.
func (b *bench) measurePairRunning(ctx context.Context, g *group, m *matrix, name string, images []*image, holders []holder) error {
	cache, pss := make([]sample, len(holders)), make([]sample, len(holders))
	mounting, files := make([]sample, len(holders)), make([]sample, len(holders))
	sides := make([]func() error, 0, len(holders))
	for i, h := range holders {
		sides = append(sides, func() error {
			found, err := b.run(ctx, g, h, name, images)
			if err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			cache[i].add(mb(found.cache))
			pss[i].add(mb(found.pss))
			mounting[i].add(mb(found.mounting))
			files[i].add(mb(found.files))
			return nil
		})
		if err := h.known(ctx, images); err != nil {
			return err
		}
	}
	if _, err := b.run(ctx, g, holders[0], name, images); err != nil {
		return err
	}
	if err := turns(ctx, min(b.rounds, runningRounds), sides...); err != nil {
		return err
	}
	rows := []struct {
		name   string
		values []sample
	}{{"page cache", cache}, {beforeStart, mounting}, {"PSS", pss}, {"PSS, of files only", files}}
	for _, what := range rows {
		r := m.row(name+": "+what.name, "MB")
		for i, h := range holders {
			reference := what.values[0]
			if i == 0 || what.name == beforeStart {
				reference = nil
			}
			m.set(r, h.name, what.values[i], reference, nil)
		}
	}
	return nil
}

// running is what a pair of servers takes, in bytes.
type running struct {
	cache      int64
	mounting   int64 // of cache, what was there before the servers started
	pss, files int64 // of the servers' processes; files: of it, what is of files
}

// run starts the servers, gives them load, counts and stops them.
func (b *bench) run(ctx context.Context, g *group, h holder, name string, images []*image) (found running, err error) {
	before, err := g.before()
	if err != nil {
		return found, err
	}
	dirs, release, err := h.mount(ctx, images)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, release()) }()
	mounted, err := g.cache()
	if err != nil {
		return found, err
	}
	found.mounting = mounted - before
	others, err := g.processes() // this one, and our server
	if err != nil {
		return found, err
	}
	ports := make([]string, len(dirs))
	for i, dir := range dirs {
		if ports[i], err = freePort(ctx); err != nil {
			return found, err
		}
		if err := b.call(ctx, name, dir, ports[i], "start"); err != nil {
			return found, err
		}
		defer func() { err = errors.Join(err, b.call(context.WithoutCancel(ctx), name, dir, ports[i], "stop")) }()
	}
	if err := g.outside(func() error {
		for i, dir := range dirs {
			if err := b.call(ctx, name, dir, ports[i], "load"); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return found, err
	}
	after, err := g.cache()
	if err != nil {
		return found, err
	}
	found.cache = after - before
	now, err := g.processes()
	if err != nil {
		return found, err
	}
	for pid := range now {
		if others[pid] {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		for field, sum := range map[string]*int64{"Pss:": &found.pss, "Pss_File:": &found.files} {
			n, err := kilobytes(text, field)
			if err != nil {
				return found, fmt.Errorf("smaps_rollup of process %d: %w", pid, err)
			}
			*sum += n << 10
		}
	}
	if found.pss == 0 {
		return found, errors.New("the script started no process in our memory cgroup")
	}
	return found, nil
}

// lonely runs a program without the mounts of other erofs-csi processes: a server's
// copies of them would keep them busy. Its first two arguments are where ours are.
const lonely = `state=$1 work=$2; shift 2
while read -r source dir rest; do
	[ "$source" = erofs-csi ] || continue
	case $dir in "$state"/*|"$work"/*) ;; *) umount -l "$dir" ;; esac
done </proc/self/mounts
exec "$@"`

// call calls the script.
func (b *bench) call(ctx context.Context, name, root, port, action string) error {
	ctx, cancel := context.WithTimeout(ctx, scriptPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private",
		"sh", "-c", lonely, "sh", b.state, b.work, b.script, name, root, port, action)
	// Of no use to what runs in the tree of an image.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TMPDIR=") })
	cmd.Env = append(cmd.Env, "WORKLOAD_STATE="+filepath.Join(b.state, "workload"))
	// A file, not a pipe: a server that the script leaves behind may keep it open.
	log, err := os.Create(filepath.Join(b.work, "script.log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%s %s %s: %w: %s", filepath.Base(b.script), name, action, err, bytes.TrimSpace(text))
	}
	return nil
}

// freePort finds a TCP port that nobody listens at.
func freePort(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

// processes are those in the group.
func (g *group) processes() (map[int]bool, error) {
	text, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	pids := make(map[int]bool)
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids[pid] = true
	}
	return pids, nil
}

// outside runs f with this process out of the group, so that what f starts is not
// charged to it.
func (g *group) outside(f func() error) error {
	if err := moveSelf(g.back); err != nil {
		return err
	}
	return errors.Join(f(), moveSelf(g.dir))
}
