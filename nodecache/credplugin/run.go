package credplugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	// maxAnswer bounds the standard output of a run, in bytes.
	maxAnswer = 1 << 20
	// maxRun is kubelet's limit.
	maxRun = time.Minute
	// patience is how long a killed run may hold its pipes open.
	patience = 2 * time.Second
)

var errAnswerTooLong = errors.New("its answer is too long")

// limited is a buffer that refuses what is beyond maxAnswer: a plugin that goes
// on writing ends by SIGPIPE.
type limited struct {
	text []byte
	full bool
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.text)+len(p) > maxAnswer {
		l.full = true
		return 0, errAnswerTooLong
	}
	l.text = append(l.text, p...)
	return len(p), nil
}

// run runs the plugin once, with a token or "". No error holds what it wrote.
func (p *provider) run(ctx context.Context, image, token string) (*response, error) {
	question, err := json.Marshal(request{typeMeta{"CredentialProviderRequest", p.apiVersion}, image, token})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	var out limited
	cmd := exec.CommandContext(ctx, p.path, p.args...) //nolint:gosec // the administrator's configuration
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(question), &out
	cmd.WaitDelay = patience
	// Its children, too, end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil:
			p.mu.Lock()
			p.hung = time.Now()
			p.mu.Unlock()
			return nil, fmt.Errorf("it took longer than %s", p.limit)
		case out.full:
			return nil, fmt.Errorf("%w: more than %d bytes", errAnswerTooLong, maxAnswer)
		case errors.As(err, &exit):
			return nil, errors.New(exit.String())
		}
		return nil, err
	}
	var answer response
	if json.Unmarshal(out.text, &answer) != nil {
		return nil, errors.New("its answer is not valid JSON")
	}
	if answer.Kind != "CredentialProviderResponse" || answer.APIVersion != p.apiVersion {
		return nil, fmt.Errorf("its answer is no CredentialProviderResponse of %s", p.apiVersion)
	}
	return &answer, nil
}
