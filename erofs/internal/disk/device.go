package disk

// DeviceSlotSize is the size of a DeviceSlot and the unit of
// SuperBlock.DevtSlotOff (EROFS_DEVT_SLOT_SIZE).
const DeviceSlotSize = 128

// DeviceSlot is struct erofs_deviceslot.
type DeviceSlot struct {
	Tag       [64]byte // 0x00 tag
	Blocks    uint32   // 0x40 blocks_lo
	UniAddr   uint32   // 0x44 uniaddr_lo
	BlocksHi  uint16   // 0x48 blocks_hi, with the 48bit feature
	UniAddrHi uint16   // 0x4a uniaddr_hi, with the 48bit feature
	Reserved  [52]byte // 0x4c
}

// Decode reads the slot that b starts with.
func (d *DeviceSlot) Decode(b []byte) {
	_ = b[DeviceSlotSize-1]
	copy(d.Tag[:], b)
	d.Blocks = le.Uint32(b[0x40:])
	d.UniAddr = le.Uint32(b[0x44:])
	d.BlocksHi = le.Uint16(b[0x48:])
	d.UniAddrHi = le.Uint16(b[0x4a:])
	copy(d.Reserved[:], b[0x4c:])
}
