// Package pod plays pods for tests: shells in mount namespaces of their own.
package pod

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Pod is a shell in a mount namespace of its own.
type Pod struct {
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

// Start starts a shell by unshare(1) with some flags. It ends with the test.
func Start(t *testing.T, flags ...string) *Pod {
	t.Helper()
	p := &Pod{cmd: exec.Command("unshare", append(flags, "sh")...)}
	in, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	read, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, out, out
	p.in, p.out = write, bufio.NewReader(read)
	err = p.cmd.Start()
	_ = in.Close()
	_ = out.Close()
	t.Cleanup(func() {
		p.End()
		_ = read.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// End kills the shell, and waits for its end. It may be called again.
func (p *Pod) End() {
	_ = p.in.Close()
	if p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// PID is a process in the pod's namespace: unshare has become the shell.
func (p *Pod) PID() int { return p.cmd.Process.Pid }

// Try runs a command, and returns what it prints, and whether
// it succeeds.
func (p *Pod) Try(t *testing.T, command string, args ...any) (text string, ok bool) {
	t.Helper()
	if _, err := fmt.Fprintf(p.in, command+"\necho \"=$?\"\n", args...); err != nil {
		t.Fatal(err)
	}
	for {
		line, err := p.out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if code, found := strings.CutPrefix(line, "="); found {
			return text, strings.TrimSpace(code) == "0"
		}
		text += line
	}
}

// Run runs a command that must succeed, and returns what it prints.
func (p *Pod) Run(t *testing.T, command string, args ...any) string {
	t.Helper()
	text, ok := p.Try(t, command, args...)
	if !ok {
		t.Fatalf("%s: %s", fmt.Sprintf(command, args...), text)
	}
	return text
}
