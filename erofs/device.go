package erofs

import (
	"io"
	"math"
	"math/bits"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// Device is one extra device of a multi-device image.
type Device struct {
	R    io.ReaderAt
	Size int64 // bytes
}

// DeviceSlot is one entry of the device table.
type DeviceSlot struct {
	Tag     string // digest or name that mkfs gave, maybe empty
	Blocks  uint64
	UniAddr uint64 // first block in the unified address space, 0: none
}

// deviceSlot is an entry of the device table with the device given for it. The
// device has size bytes by the table; in the unified address space it begins
// at byte start, or has no place there if that is 0. size+start <= MaxInt64.
// dev.R is nil when Open was given no devices.
type deviceSlot struct {
	tag         string
	size, start int64
	dev         Device
}

// loadDevices reads the device table and pairs it with the given devices.
//
// Source: erofs_scan_devices in fs/erofs/super.c of Linux 7.2.
func (im *Image) loadDevices(sb *disk.SuperBlock, given []Device) error {
	const op = "device table"
	n := 0
	if sb.FeatureIncompat&disk.IncompatDeviceTable != 0 {
		n = int(sb.ExtraDevices)
	}
	if len(given) > 0 && len(given) != n {
		return fail(ErrInvalid, op, 0, noOffset, "the image has %d extra devices, %d were given", n, len(given))
	}
	if n == 0 {
		return nil
	}
	off := int64(sb.DevtSlotOff) * disk.DeviceSlotSize
	if end := off + int64(n)*disk.DeviceSlotSize; end > im.size {
		return fail(ErrCorrupt, op, 0, off, "%d slots reach beyond the end of the image (%d bytes)", n, im.size)
	}
	im.flat = len(given) == 0
	im.deviceMask = 1<<bits.Len(uint(n)) - 1
	im.devices = make([]deviceSlot, n) // their slots are in the image, so n <= size/128
	for i := range im.devices {
		raw, err := im.meta.view(op, 0, off+int64(i)*disk.DeviceSlotSize, disk.DeviceSlotSize)
		if err != nil {
			return err
		}
		var slot disk.DeviceSlot
		slot.Decode(raw)
		d := &im.devices[i]
		d.tag = cString(slot.Tag[:])
		blocks, start := int64(slot.Blocks), int64(slot.UniAddr)
		if sb.FeatureIncompat&disk.Incompat48Bit != 0 {
			blocks |= int64(slot.BlocksHi) << 32
			start |= int64(slot.UniAddrHi) << 32
		}
		if most := int64(math.MaxInt64) >> im.blkBits; blocks > most || start > most-blocks {
			return fail(ErrCorrupt, op, 0, off, "device %d has %d blocks from block %d on", i+1, blocks, start)
		}
		d.size, d.start = blocks<<im.blkBits, start<<im.blkBits
		if !im.flat {
			d.dev = given[i]
		}
		im.sb.ExtraDevices = append(im.sb.ExtraDevices, DeviceSlot{Tag: d.tag, Blocks: uint64(blocks), UniAddr: uint64(start)})
	}
	return nil
}

// CheckDevices reports whether all extra devices can be read: they were given
// to Open and are long enough, or the primary device holds them. The error,
// ErrUnsupported or ErrCorrupt, names the first that can't.
func (im *Image) CheckDevices() error {
	for i := range im.devices {
		d := &im.devices[i]
		if d.size == 0 && !im.flat {
			continue // mkfs.erofs before 1.6 leaves the size of its blobdev out
		}
		if _, _, n, err := im.extraDevice(0, i+1, 0); err != nil {
			return err
		} else if n < d.size {
			return fail(ErrCorrupt, "device table", 0, noOffset, "extra device %d (tag %q) has %d of %d bytes", i+1, d.tag, n, d.size)
		}
	}
	return nil
}

// readData fills p from byte address addr of a device: 0 is the primary one
// and the unified address space, 1 the first extra device. Whole of p or an
// error. It reads straight into p in one ReadAt for each device touched.
//
// Errors: ErrCorrupt for an unknown device or an address outside of it,
// ErrUnsupported for a device that was not given, or what the device returned.
func (im *Image) readData(in *Inode, p []byte, dev uint16, addr int64) error {
	for len(p) > 0 {
		r, devAddr, n, err := im.mapDevice(in.NID, dev, addr)
		if err != nil {
			return err
		}
		n = min(n, int64(len(p)))
		if err := readFull(r, p[:n], devAddr); err != nil {
			return readError("data", in.NID, devAddr, err)
		}
		p, addr = p[n:], addr+n
	}
	return nil
}

// mapDevice finds the reader and the address in it of byte address addr for
// the inode nid, and how many bytes from there are on that device: at least 1.
//
// Source: erofs_map_dev in fs/erofs/data.c of Linux 6.18.
func (im *Image) mapDevice(nid uint64, dev uint16, addr int64) (r io.ReaderAt, devAddr, n int64, err error) {
	if dev != 0 {
		if int(dev) > len(im.devices) {
			return nil, 0, 0, fail(ErrCorrupt, "data", nid, noOffset, "device %d, but the table has %d", dev, len(im.devices))
		}
		return im.extraDevice(nid, int(dev), addr)
	}
	if !im.flat {
		if id, start := im.unified(addr); id != 0 {
			return im.extraDevice(nid, id, addr-start)
		}
	}
	if addr < 0 || addr >= im.size {
		return nil, 0, 0, fail(ErrCorrupt, "data", nid, addr, "the address is beyond the end of the image (%d bytes)", im.size)
	}
	return im.r, addr, im.size - addr, nil
}

// extraDevice is mapDevice for the extra device id, 1 <= id <= len(devices).
func (im *Image) extraDevice(nid uint64, id int, addr int64) (r io.ReaderAt, devAddr, n int64, err error) {
	d := &im.devices[id-1]
	if im.flat {
		if d.start == 0 || d.start >= im.size {
			return nil, 0, 0, fail(ErrUnsupported, "data", nid, noOffset,
				"extra device %d of %d (tag %q) was not given", id, len(im.devices), d.tag)
		}
		if addr < 0 || addr >= im.size-d.start {
			return nil, 0, 0, fail(ErrCorrupt, "data", nid, addr, "the address is beyond the end of the image (%d bytes)", im.size)
		}
		return im.r, d.start + addr, im.size - d.start - addr, nil
	}
	if addr < 0 || addr >= d.dev.Size {
		return nil, 0, 0, fail(ErrCorrupt, "data", nid, addr, "the address is beyond the end of device %d (%d bytes)", id, d.dev.Size)
	}
	return d.dev.R, addr, d.dev.Size - addr, nil
}

// unified finds the extra device whose place in the unified address space
// holds addr, and the byte address where that place starts; id 0: none, the
// primary device.
func (im *Image) unified(addr int64) (id int, start int64) {
	for i := range im.devices {
		d := &im.devices[i]
		if d.start != 0 && addr >= d.start && addr-d.start < d.size {
			return i + 1, d.start
		}
	}
	return 0, 0
}
