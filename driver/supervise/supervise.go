// Package supervise starts a program, and starts it again when it is killed or crashes:
// process 1 of the node plugin's container.
//
// A container runtime does that, too, but it first waits until all threads of a killed
// process are gone. A thread of the plugin may wait for the file system that the plugin
// serves, in mount(2) for instance, and the kernel does not end it before it has an
// answer, which only the next plugin gives. And a runtime waits longer after each crash,
// up to five minutes in Kubernetes, while readers in pods wait for the plugin.
//
// A program that ends by itself is not started again: how that ends is the runtime's.
package supervise

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Alive is the descriptor that a program inherits and keeps open until its end. It must
// close it on exec, for a program of its own would keep it open as well.
const Alive = 3

// DeathsVariable is the variable of the environment that tells a program how often it
// died before it was started, since its supervisor was.
const DeathsVariable = "EROFS_CSI_DEATHS"

// Deaths is the number in DeathsVariable, 0 without a supervisor.
func Deaths() int {
	n, err := strconv.Atoi(os.Getenv(DeathsVariable))
	if err != nil {
		return 0
	}
	return n
}

const (
	// quick is a life that is too short: the program dies of what it finds.
	quick = 10 * time.Second
	// maxQuick is how many of them in a row there are before the supervisor gives up.
	maxQuick = 5
	// firstPause comes after the first short life, the double after the next.
	firstPause = 100 * time.Millisecond
	// buryTime is how long the end of a process may take after that of its descriptors,
	// before it counts as killed.
	buryTime = 300 * time.Millisecond
	// panicked is the exit code of a Go program that panics, and of one that is not used
	// as it should: that dies again at once.
	panicked = 2
)

// forwarded are the signals that the program gets in the supervisor's place.
var forwarded = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// Run runs a program until it ends by itself, or after a SIGTERM or SIGINT, or dies
// five times in a row within ten seconds of its start, and returns its exit code: 128
// and the signal if that ended it. The program has this process' standard files and
// gets its signals. Processes that are left to this one are reaped.
//
// Run takes all children of the process, and must be called once.
//
// Errors: args is no program, or can't be started.
func Run(args []string, log func(format string, args ...any)) (code int, err error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return 0, err
	}
	s := &supervisor{path: path, args: args, log: log, signals: make(chan os.Signal, 16), children: make(chan os.Signal, 1)}
	signal.Notify(s.signals, forwarded...)
	signal.Notify(s.children, unix.SIGCHLD)
	defer signal.Stop(s.signals)
	defer signal.Stop(s.children)
	for {
		if err := s.start(); err != nil {
			return 0, err
		}
		e := s.await()
		if !e.died || s.stopping {
			return e.code, nil
		}
		s.deaths++
		log("%s, process %d, died after %s: %s", args[0], s.pid, time.Since(s.born).Round(time.Millisecond), e.how)
		if time.Since(s.born) >= quick {
			s.shortLives = 0
			continue
		}
		if s.shortLives++; s.shortLives == maxQuick {
			log("Giving up: %d times in a row it has died within %s", maxQuick, quick)
			return e.code, nil
		}
		if !s.pause(firstPause << (s.shortLives - 1)) {
			return e.code, nil
		}
	}
}

// end is how a program ended.
type end struct {
	died bool // not by itself
	code int
	how  string
}

// endOf tells it of a process that was reaped.
func endOf(status unix.WaitStatus) end {
	switch {
	case status.Signaled():
		return end{died: true, code: 128 + int(status.Signal()), how: status.Signal().String()}
	case status.ExitStatus() == panicked:
		return end{died: true, code: panicked, how: "panic, or wrong usage"}
	default:
		return end{code: status.ExitStatus()}
	}
}

type supervisor struct {
	path     string
	args     []string
	log      func(string, ...any)
	signals  chan os.Signal // to pass on
	children chan os.Signal // SIGCHLD

	pid      int
	born     time.Time
	gone     chan struct{} // closed when the program has no descriptors any more
	stopping bool          // somebody asked for the end

	deaths, shortLives int
}

// start starts the program.
func (s *supervisor) start() error {
	alive, held, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	p, err := os.StartProcess(s.path, s.args, &os.ProcAttr{
		Env:   append(os.Environ(), fmt.Sprintf("%s=%d", DeathsVariable, s.deaths)),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, Alive: held},
	})
	if err != nil {
		_ = alive.Close()
		return err
	}
	s.pid, s.born, s.gone = p.Pid, time.Now(), make(chan struct{})
	_ = p.Release() // reap waits for it
	go func(gone chan struct{}) {
		defer close(gone)
		_, _ = alive.Read(make([]byte, 1)) // nobody writes: it is at its end
		_ = alive.Close()
	}(s.gone)
	return nil
}

// await waits for the end of the program, and passes signals on meanwhile.
func (s *supervisor) await() end {
	gone := s.gone
	var buried <-chan time.Time
	for {
		select {
		case sig := <-s.signals:
			s.note(sig)
			if err := unix.Kill(s.pid, sig.(unix.Signal)); err != nil { //nolint:forcetypeassert // it is on Unix
				s.log("Passing %s on to process %d: %v", sig, s.pid, err)
			}
		case <-s.children:
			if status, ended := s.reap(); ended {
				return endOf(status)
			}
		case <-gone:
			gone, buried = nil, time.After(buryTime)
		case <-buried:
			buried = nil
			if !s.stopping { // else nobody will answer it
				return end{died: true, code: 128 + int(unix.SIGKILL), how: "killed, with a thread that still waits in the kernel"}
			}
		}
	}
}

// pause waits, and tells whether nobody asked for the end meanwhile.
func (s *supervisor) pause(d time.Duration) bool {
	over := time.After(d)
	for !s.stopping {
		select {
		case <-over:
			return true
		case sig := <-s.signals:
			s.note(sig)
		case <-s.children:
			s.reap()
		}
	}
	return false
}

// note sees a signal that is for the program.
func (s *supervisor) note(sig os.Signal) {
	s.stopping = s.stopping || sig == unix.SIGTERM || sig == unix.SIGINT
}

// reap takes the children that have ended, and tells whether the program is one.
func (s *supervisor) reap() (of unix.WaitStatus, ended bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || pid <= 0:
			return of, ended
		case pid == s.pid:
			of, ended = status, true
		}
	}
}
