package main

import (
	"context"
	"errors"
	"fmt"
)

// rivals are the same images mounted by us, in one domain, and by the kernel. Both
// were read whole and found right.
type rivals struct {
	server *server
	kernel []*mounted
	// sets are the files: ours, the kernel's; for each image.
	sets [2][]*fileSet
}

const (
	ours = iota
	kernels
)

// rival mounts images both ways and verifies them.
func (b *bench) rival(ctx context.Context, front string, images ...*image) (_ *rivals, err error) {
	r := &rivals{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.server, err = b.serve(ctx, front, b.freshCache(), images...); err != nil {
		return nil, err
	}
	for i, im := range images {
		m, err := b.kernelMount(im)
		if err != nil {
			return nil, err
		}
		r.kernel = append(r.kernel, m)
		for who, dir := range []string{r.server.dirs[i], m.dir} {
			if err := im.verify(ctx, dir); err != nil {
				return nil, fmt.Errorf("%s mount: %w", []string{"our", "the kernel's"}[who], err)
			}
			set, err := openSet(im, dir)
			if err != nil {
				return nil, err
			}
			r.sets[who] = append(r.sets[who], set)
		}
	}
	return r, nil
}

// close unmounts everything, and goes on after an error.
func (r *rivals) close() error {
	for _, sets := range r.sets {
		for _, s := range sets {
			s.close()
		}
	}
	var errs []error
	for _, m := range r.kernel {
		errs = append(errs, m.unmount())
	}
	if r.server != nil {
		errs = append(errs, r.server.close())
	}
	return errors.Join(errs...)
}
