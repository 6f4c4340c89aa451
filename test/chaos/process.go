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

// process is a running program of erofs-csi.
type process struct {
	name string
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	err  error         // how; of gone
}

// startProcess starts a program whose stdout and stderr go to a log. It is killed with the
// harness.
func startProcess(name, logPath string, path string, args ...string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	p := &process{name: name, cmd: exec.Command(path, args...), gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := start(p.cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.gone)
	}()
	return p, nil
}

// start starts a command on a thread that lasts: Pdeathsig is of the thread.
func start(cmd *exec.Cmd) error {
	result := make(chan error)
	starts <- func() { result <- cmd.Start() }
	return <-result
}

var starts = make(chan func())

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// unkillable is how long a process may take to end after SIGKILL.
const unkillable = 20 * time.Second

// kill ends the process by SIGKILL. A process that does not end is an error.
func (p *process) kill() error {
	_ = p.cmd.Process.Kill()
	select {
	case <-p.gone:
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
	binary string   // GUARDED_BY(mu)
	proc   *process // GUARDED_BY(mu)
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
	var err error
	p.proc, err = startProcess("the plugin", p.w.path("plugin.log"), p.binary, args...)
	if err == nil {
		err = p.w.joinGroup(p.proc)
	}
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
