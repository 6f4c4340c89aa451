package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// loopMount mounts a file by a loop device, which goes away with the mount; with
// direct, the device reads it with O_DIRECT.
func (b *bench) loopMount(path, fstype string, direct bool) (_ *mounted, err error) {
	start := time.Now()
	device, err := loopDevice(path, direct)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer func() { _ = device.Close() }() // the mount holds it
	dir, err := b.mountpoint()
	if err != nil {
		return nil, err
	}
	if err := unix.Mount(device.Name(), dir, fstype, unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s by a loop device: %w", fstype, err), os.Remove(dir))
	}
	return &mounted{dir: dir, took: time.Since(start), unmount: func() error { return unmountSoon(dir) }}, nil
}

// loopDevice opens a free loop device over a file. It is free again when nobody has
// it open or mounted.
func loopDevice(path string, direct bool) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	if direct {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	for range 16 { // somebody else may be faster
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, os.NewSyscallError("LOOP_CONFIGURE", err)
		}
	}
	return nil, errors.New("all are taken while they are asked for")
}
