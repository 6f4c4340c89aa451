package podmount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// Task is what a helper does: one of the two.
type Task struct {
	Look    string   `json:"look,omitempty"` // the source of mounts to look for
	Replace *Request `json:"replace,omitempty"`
}

// Answer is what became of a task.
type Answer struct {
	Namespaces []Namespace `json:"namespaces,omitempty"`
	Report     Report      `json:"report,omitzero"`
	Error      string      `json:"error,omitempty"`
}

// Helper has another process do a task: Run with a command that calls Main.
type Helper func(context.Context, Task) (Answer, error)

// helperTimeout bounds a task.
const helperTimeout = 30 * time.Second

// Main is the whole of a helper: the Task is on stdin, the Answer goes to stdout, both as
// JSON. It is to have no descriptor of a FUSE connection, since it may wait for file
// systems, and for processes that do, where no signal ends it.
func Main(stdin io.Reader, stdout io.Writer) error {
	var task Task
	if err := json.NewDecoder(stdin).Decode(&task); err != nil {
		return fmt.Errorf("task: %w", err)
	}
	var answer Answer
	var err error
	if task.Replace != nil {
		answer.Report, err = replace(*task.Replace)
	} else {
		answer.Namespaces, err = look(task.Look)
	}
	if err != nil {
		answer.Error = err.Error()
	}
	return json.NewEncoder(stdout).Encode(answer)
}

// Run starts a command as a helper, and is back when it has answered, or ctx or half a
// minute have ended. The helper is then killed; one that nothing ends is left behind.
func Run(ctx context.Context, task Task, command string, args ...string) (answer Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	in, toHelper, err := os.Pipe()
	if err != nil {
		return answer, err
	}
	fromHelper, out, err := os.Pipe()
	if err != nil {
		return answer, errors.Join(err, in.Close(), toHelper.Close())
	}
	cmd := exec.Command(command, args...) //nolint:gosec,noctx // the caller's own; it is killed below
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	err = cmd.Start()
	err = errors.Join(err, in.Close(), out.Close())
	if err != nil {
		return answer, errors.Join(err, toHelper.Close(), fromHelper.Close())
	}
	done := make(chan error, 1)
	go func() {
		err := json.NewEncoder(toHelper).Encode(task)
		if err = errors.Join(err, toHelper.Close()); err == nil {
			err = json.NewDecoder(fromHelper).Decode(&answer)
		}
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = fromHelper.SetReadDeadline(time.Unix(1, 0))
		_ = toHelper.SetWriteDeadline(time.Unix(1, 0))
		err = errors.Join(fmt.Errorf("a process that looks after pods' mounts does not answer: %w", ctx.Err()), <-done)
	}
	_ = fromHelper.Close()
	_ = cmd.Process.Kill()
	go func() { _ = cmd.Wait() }()
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	return answer, err
}
