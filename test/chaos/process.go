package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// readyPatience is how long a plugin may take to be ready again.
const readyPatience = 90 * time.Second

// process is a running program.
type process struct {
	name string
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	err  error         // how; of gone
	// over is closed when another may take its place: at gone, or when it has no
	// descriptors any more while a thread of it waits in the kernel for the next one.
	over chan struct{}
}

// startProcess starts a program whose stdout and stderr go to a log. It is killed with the
// harness.
func startProcess(name, logPath string, path string, args ...string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	alive, held, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{held} // as the supervisor of the plugin's container does it
	p, err := follow(name, cmd)
	_ = held.Close()
	if err != nil {
		_ = alive.Close()
		return nil, err
	}
	p.over = make(chan struct{})
	go p.watch(alive)
	return p, nil
}

// follow starts a command, and waits for its end.
func follow(name string, cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, gone: make(chan struct{})}
	p.over = p.gone
	go func() {
		p.err = cmd.Wait()
		close(p.gone)
	}()
	return p, nil
}

// buryTime is how long the end of a process may take after that of its descriptors, before
// a thread of it counts as waiting.
const buryTime = 300 * time.Millisecond

// watch closes over, with the end of a pipe that the process keeps open.
func (p *process) watch(alive *os.File) {
	defer close(p.over)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = alive.Read(make([]byte, 1)) // nobody writes: it is at its end
	}()
	defer func() { _ = alive.Close() }() // ends that
	select {
	case <-p.gone:
		return
	case <-closed:
	}
	select {
	case <-p.gone:
	case <-time.After(buryTime):
	}
}

// start starts a command on a thread that lasts: Pdeathsig is of the thread.
func start(cmd *exec.Cmd) error {
	result := make(chan error)
	starts <- func() { result <- cmd.Start() }
	return <-result
}

var starts = make(chan func())

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool { return !ended(p.over) }

func ended(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// unkillable is how long a process may take to end after SIGKILL.
const unkillable = 20 * time.Second

// kill ends the process by SIGKILL, and returns when another may take its place. A process
// that does not end is an error.
func (p *process) kill() error {
	_ = p.cmd.Process.Kill()
	select {
	case <-p.over:
		return nil
	case <-time.After(unkillable):
		return fmt.Errorf("%s, process %d, does not end after SIGKILL: %s", p.name, p.pid(), stackOf(p.pid()))
	}
}

// terminate ends the process in an orderly way.
func (p *process) terminate() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.gone:
		if p.err != nil {
			return fmt.Errorf("%s after SIGTERM: %w", p.name, p.err)
		}
		return nil
	case <-time.After(unkillable):
		return errors.Join(fmt.Errorf("%s does not end after SIGTERM", p.name), p.kill())
	}
}

// catch returns as soon as a thread of the process waits for an answer of FUSE: it asks what
// the process itself serves. It waits for that for some time at the most.
func (p *process) catch(patience time.Duration) {
	for start := time.Now(); time.Since(start) < patience; {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid()))
		for _, t := range tasks {
			if where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/wchan", p.pid(), t.Name())); string(where) == "request_wait_answer" {
				return
			}
		}
	}
}

// stackOf says where the threads of a process are.
func stackOf(pid int) string {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	var out []string
	for _, t := range tasks {
		state := "?"
		if text, err := os.ReadFile(t + "/stat"); err == nil {
			if i := strings.LastIndexByte(string(text), ')'); i >= 0 && i+2 < len(text) {
				state = string(text[i+2])
			}
		}
		wchan, _ := os.ReadFile(t + "/wchan")
		out = append(out, fmt.Sprintf("%s %s %s", filepath.Base(t), state, wchan))
	}
	return strings.Join(out, "; ")
}

// plugin is the node plugin of a world, which is killed and started again.
type plugin struct {
	w    *world
	conn *grpc.ClientConn
	csi.NodeClient
	identity csi.IdentityClient

	mu     sync.Mutex
	binary string     // GUARDED_BY(mu)
	proc   *process   // GUARDED_BY(mu)
	dying  []*process // killed, with a thread that waits for the next one; of who kills
	port   int
	flags  []string
}

func newPlugin(w *world, flags ...string) (*plugin, error) {
	p := &plugin{w: w, binary: w.binary, flags: flags}
	var err error
	// kubelet dials anew for each call; here a call waits for the next plugin.
	p.conn, err = grpc.NewClient("unix:"+w.path("run/csi.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 50 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, err
	}
	p.NodeClient, p.identity = csi.NewNodeClient(p.conn), csi.NewIdentityClient(p.conn)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.port = l.Addr().(*net.TCPAddr).Port
	return p, l.Close()
}

// kill kills the plugin, and returns when the next one may be started.
func (p *plugin) kill() error {
	proc := p.process()
	if err := proc.kill(); err != nil {
		return err
	}
	p.leave(proc)
	return nil
}

// leave remembers a process that is over and may have a thread that waits for the next one.
func (p *plugin) leave(proc *process) {
	if !ended(proc.gone) {
		p.w.tally.waiting.Add(1)
		p.dying = append(p.dying, proc)
	}
}

// buryPatience is how long a thread of a killed plugin may wait when the next one is ready.
const buryPatience = 30 * time.Second

// bury waits for the end of those that were killed, when the plugin is ready. One that does
// not end is counted, and remembered no longer.
func (p *plugin) bury(res *result) {
	patience := time.After(buryPatience)
	for _, proc := range p.dying {
		select {
		case <-proc.gone:
		case <-patience:
			patience = time.After(0) // for the others as well
			res.unkillable++
			res.failf("%s, process %d, does not end %v after the next one was ready: %s", proc.name, proc.pid(), buryPatience, stackOf(proc.pid()))
		}
	}
	p.dying = nil
}

// start starts the plugin, which is not running, and does not wait.
func (p *plugin) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	args := append([]string{
		"node", "--endpoint", "unix://" + p.w.path("run/csi.sock"), "--node-id", "chaos",
		"--cache-dir", p.w.cacheDir(), "--state-dir", p.w.path("run/state"),
		"--holder", p.w.path("run/holder.sock"), "--allow-path", p.w.path("images"),
		"--plain-http", p.w.registry.host, "--metrics-address", fmt.Sprintf("127.0.0.1:%d", p.port),
		"--front", p.w.front, "-v=2",
	}, p.flags...)
	path := p.binary
	if g := p.w.group; g != nil {
		// It is in its group before it asks for the limit.
		path, args = "/bin/sh", append([]string{"-c", `echo $$ > "$0" && exec "$@"`, g.procs(), path}, args...)
	}
	var err error
	p.proc, err = startProcess("the plugin", p.w.path("plugin.log"), path, args...)
	return err
}

// process is the one that was started last.
func (p *plugin) process() *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc
}

// ready waits until the plugin has rebuilt its volumes.
func (p *plugin) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for {
		one, cancel := context.WithTimeout(ctx, time.Second)
		res, err := p.identity.Probe(one, &csi.ProbeRequest{}, grpc.WaitForReady(true))
		cancel()
		if err == nil && res.GetReady().GetValue() {
			return nil
		}
		proc := p.process()
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("the plugin is not ready after %v: %w", readyPatience, err)
		case !proc.running():
			<-proc.gone
			return fmt.Errorf("the plugin ended by itself: %w", proc.err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// metric reads one metric of the plugin, without labels.
func (p *plugin) metric(ctx context.Context, name string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/metrics", p.port), nil)
	if err != nil {
		return 0, err
	}
	req.Close = true // so that no connection is left, which would be counted
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	lines := bufio.NewScanner(io.LimitReader(res.Body, 4<<20))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("metric %s is not there: %w", name, lines.Err())
}

// startHolder starts the holder and waits until it listens.
func (w *world) startHolder() (err error) {
	socket := w.path("run/holder.sock")
	if w.holder, err = startProcess("the holder", w.path("holder.log"), w.binary+"-holder", "--socket", socket); err != nil {
		return err
	}
	for start := time.Now(); time.Since(start) < readyPatience; time.Sleep(5 * time.Millisecond) {
		if err = exec.Command(w.binary, "holder", "--socket", socket, "--list").Run(); err == nil {
			return nil
		}
		if !w.holder.running() {
			break
		}
	}
	return fmt.Errorf("the holder does not answer: %w", err)
}
