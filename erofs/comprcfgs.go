package erofs

import "github.com/erofs-csi/erofs-csi/erofs/internal/disk"

// loadCompression finds out which compression algorithms the image's files may
// use and checks their parameters: length-prefixed records behind the
// superblock in the order of the algorithms' bits. Nothing is kept of them: an
// LZMA or Zstandard window is bounded by the data that a pcluster decodes to.
// An image without the compr_cfgs feature has LZ4 alone.
//
// Source: z_erofs_parse_cfgs and the config functions in
// fs/erofs/decompressor*.c of Linux 7.2.
func (im *Image) loadCompression(sb *disk.SuperBlock) error {
	const op = "compression configuration"
	if sb.FeatureIncompat&disk.IncompatComprCfgs == 0 {
		im.algorithms = 1 << disk.AlgLZ4
		if sb.ComprAlgs != 0 || sb.FeatureIncompat&disk.IncompatLZ4ZeroPadding != 0 {
			im.sb.Algorithms = algorithmNames[:1] // its match distance, or its feature
		}
		return nil
	}
	im.algorithms = sb.ComprAlgs
	off := int64(disk.SuperBlockOffset + disk.SuperBlockSize + int(sb.ExtSlots)*disk.ExtSlotSize)
	for alg := range uint8(disk.AlgEnd) {
		if !im.hasAlgorithm(alg) {
			continue
		}
		record, next, err := im.meta.record(op, off)
		if err != nil {
			return err
		}
		if want := cfgsSizes[alg]; len(record) < want {
			return fail(ErrCorrupt, op, 0, off, "the %s record has %d bytes, not %d", algorithmNames[alg], len(record), want)
		}
		if err := im.checkCfgs(alg, record, off); err != nil {
			return err
		}
		im.sb.Algorithms = append(im.sb.Algorithms, algorithmNames[alg])
		off = next
	}
	return nil
}

var cfgsSizes = [disk.AlgEnd]int{disk.LZ4CfgsSize, disk.LZMACfgsSize, disk.DeflateCfgsSize, disk.ZstdCfgsSize}

// checkCfgs checks the record of an algorithm, which is long enough.
func (im *Image) checkCfgs(alg uint8, record []byte, off int64) error {
	const op = "compression configuration"
	switch alg {
	case disk.AlgLZ4:
		var c disk.LZ4Cfgs
		c.Decode(record)
		if int64(c.MaxPclusterBlks)<<im.blkBits > disk.PclusterMaxSize {
			return fail(ErrCorrupt, op, 0, off, "physical clusters of %d blocks are too large", c.MaxPclusterBlks)
		}
	case disk.AlgLZMA:
		var c disk.LZMACfgs
		c.Decode(record)
		if c.Format != 0 {
			return fail(ErrUnsupported, op, 0, off, "LZMA format 0x%x", c.Format)
		}
		if c.DictSize < disk.LZMADictMin || c.DictSize > disk.LZMADictMax {
			return fail(ErrCorrupt, op, 0, off, "an LZMA dictionary of %d bytes", c.DictSize)
		}
	case disk.AlgDeflate:
		var c disk.DeflateCfgs
		c.Decode(record)
		if c.WindowBits > disk.DeflateWindowBits {
			return fail(ErrUnsupported, op, 0, off, "a DEFLATE window of 2^%d bytes", c.WindowBits)
		}
	case disk.AlgZstd:
		var c disk.ZstdCfgs
		c.Decode(record)
		if c.Format != 0 {
			return fail(ErrUnsupported, op, 0, off, "Zstandard format 0x%x", c.Format)
		}
		if c.WindowLog > disk.ZstdDictMaxBits-disk.ZstdWindowLogMin {
			return fail(ErrUnsupported, op, 0, off, "a Zstandard window of 2^%d bytes", int(c.WindowLog)+disk.ZstdWindowLogMin)
		}
	}
	return nil
}

// hasAlgorithm reports whether files of the image may use an algorithm.
func (im *Image) hasAlgorithm(alg uint8) bool { return im.algorithms>>alg&1 != 0 }

// record reads a length-prefixed record at off rounded up to four bytes: two
// bytes of length, then 1 <= length <= 65535 bytes. next is the address behind
// it.
func (c *metaCache) record(op string, off int64) (record []byte, next int64, err error) {
	off = roundUp(off, 4)
	head, err := c.view(op, 0, off, 2)
	if err != nil {
		return nil, 0, err
	}
	n := int(le.Uint16(head))
	if n == 0 {
		return nil, 0, fail(ErrCorrupt, op, 0, off, "an empty record")
	}
	if record, err = c.view(op, 0, off+2, n); err != nil {
		return nil, 0, err
	}
	return record, off + 2 + int64(n), nil
}
