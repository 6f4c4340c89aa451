package erofs

import "io"

// Device is one extra device of a multi-device image.
type Device struct {
	R    io.ReaderAt
	Size int64 // bytes
}

// deviceSlot is an entry of the device table with the reader given for it.
// The unified address space has it at [uniaddr, uniaddr+blocks), in blocks of
// the image; uniaddr 0 means that it has no place there.
type deviceSlot struct {
	tag     string
	blocks  uint64
	uniaddr uint64
	dev     *Device // nil: not given to Open
}

// readData fills p from byte address addr of a device: 0 is the primary one
// and the unified address space, 1 the first extra device. Whole of p or an
// error. It reads straight into p in one ReadAt for each device touched.
//
// Errors: ErrCorrupt for an unknown device or an address outside of it,
// ErrUnsupported for a device that Open was not given. Source: erofs_map_dev
// in fs/erofs/data.c, Linux 6.18.
func (im *Image) readData(in *Inode, p []byte, dev uint16, addr int64) error {
	for len(p) > 0 {
		r, devAddr, n, err := im.mapDevice(in, dev, addr)
		if err != nil {
			return err
		}
		n = min(n, int64(len(p)))
		if err := readFull(r, p[:n], devAddr); err != nil {
			return im.readError("data", in.NID, devAddr, err)
		}
		p, addr = p[n:], addr+n
	}
	return nil
}

// mapDevice finds the reader and the address in it of byte address addr, and
// how many bytes from there are on that device: at least one.
func (im *Image) mapDevice(in *Inode, dev uint16, addr int64) (r io.ReaderAt, devAddr, n int64, err error) {
	if addr < 0 {
		return nil, 0, 0, in.corrupt("data", noOffset, "address beyond 2^63")
	}
	if dev == 0 {
		id, start := im.unified(addr)
		if id == 0 {
			if addr >= im.size {
				return nil, 0, 0, in.corrupt("data", addr, "address beyond the end of the image (%d bytes)", im.size)
			}
			return im.r, addr, im.size - addr, nil
		}
		dev, addr = id, addr-start
	}
	if int(dev) > len(im.devices) {
		return nil, 0, 0, in.corrupt("data", noOffset, "device %d, but the table has %d", dev, len(im.devices))
	}
	slot := &im.devices[dev-1]
	if slot.dev == nil {
		return nil, 0, 0, in.unsupported("data", "data on extra device %d (tag %q), which was not given", dev, slot.tag)
	}
	if addr >= slot.dev.Size {
		return nil, 0, 0, in.corrupt("data", addr, "address beyond the end of device %d (%d bytes)", dev, slot.dev.Size)
	}
	return slot.dev.R, addr, slot.dev.Size - addr, nil
}

// unified finds the extra device whose place in the unified address space
// holds addr, and the byte address where that place starts; 0: none, the
// primary device.
func (im *Image) unified(addr int64) (id uint16, start int64) {
	blk := uint64(addr) >> im.blkBits
	for i := range im.devices {
		d := &im.devices[i]
		if d.uniaddr != 0 && blk >= d.uniaddr && blk-d.uniaddr < d.blocks {
			return uint16(i + 1), int64(d.uniaddr << im.blkBits)
		}
	}
	return 0, 0
}
