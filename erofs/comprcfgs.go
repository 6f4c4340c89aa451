package erofs

import "github.com/erofs-csi/erofs-csi/erofs/internal/disk"

// lz4Config is what the superblock says about LZ4 compressed data.
type lz4Config struct {
	maxDistance     uint16 // of a match, in bytes; 0: 65535
	maxPclusterBlks uint16 // blocks in the largest physical cluster, at least 1
}

// loadCompression reads the parameters of the compression algorithms: length-
// prefixed records behind the superblock in the order of the algorithms' bits.
// An image without the compr_cfgs feature has only a match distance, in the
// superblock, and physical clusters of one block.
//
// checkFeatures has refused every algorithm but LZ4. Source: z_erofs_parse_cfgs
// and z_erofs_load_lz4_config in fs/erofs/decompressor.c of Linux 6.18.
func (im *Image) loadCompression(sb *disk.SuperBlock) error {
	const op = "compression configuration"
	if sb.FeatureIncompat&disk.IncompatComprCfgs == 0 {
		im.lz4 = lz4Config{maxDistance: sb.ComprAlgs, maxPclusterBlks: 1}
		return nil
	}
	im.lz4 = lz4Config{maxPclusterBlks: 1}
	if sb.ComprAlgs&(1<<disk.AlgLZ4) == 0 {
		return nil
	}
	off := int64(disk.SuperBlockOffset + disk.SuperBlockSize + int(sb.ExtSlots)*disk.ExtSlotSize)
	record, _, err := im.metaRecord(op, off)
	if err != nil {
		return err
	}
	if len(record) < disk.LZ4CfgsSize {
		return fail(ErrCorrupt, op, 0, off, "the LZ4 record has %d bytes, not %d", len(record), disk.LZ4CfgsSize)
	}
	var cfgs disk.LZ4Cfgs
	cfgs.Decode(record)
	if int64(cfgs.MaxPclusterBlks)<<im.blkBits > disk.PclusterMaxSize {
		return fail(ErrCorrupt, op, 0, off, "physical clusters of %d blocks are too large", cfgs.MaxPclusterBlks)
	}
	im.lz4.maxDistance = cfgs.MaxDistance
	im.lz4.maxPclusterBlks = max(cfgs.MaxPclusterBlks, 1)
	return nil
}

// metaRecord reads a length-prefixed record at off rounded up to four bytes:
// two bytes of length, then 1 <= length <= 65535 bytes. next is the address
// behind it.
func (im *Image) metaRecord(op string, off int64) (record []byte, next int64, err error) {
	off = roundUp(off, 4)
	head, err := im.metaView(op, 0, off, 2)
	if err != nil {
		return nil, 0, err
	}
	n := int(le.Uint16(head))
	if n == 0 {
		return nil, 0, fail(ErrCorrupt, op, 0, off, "an empty record")
	}
	if record, err = im.metaView(op, 0, off+2, n); err != nil {
		return nil, 0, err
	}
	return record, off + 2 + int64(n), nil
}
