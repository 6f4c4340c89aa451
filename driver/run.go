package driver

import (
	"context"
	"errors"
)

// RunNode serves the Identity and Node services until ctx ends.
func RunNode(ctx context.Context, cfg Config) error {
	if err := cfg.checkNode(); err != nil {
		return err
	}
	_ = ctx
	return errors.New("node service: not written yet")
}

// RunController serves the Identity and Controller services until ctx ends.
func RunController(ctx context.Context, cfg Config) error {
	_, err := socketPath(cfg.Endpoint)
	_ = ctx
	return errors.Join(err, errors.New("controller service: not written yet"))
}
