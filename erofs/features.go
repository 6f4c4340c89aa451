package erofs

import (
	"fmt"

	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
)

// A feature is a bit of the superblock with the names that dump.erofs gives
// it; bits that came with two features have both.
type feature struct {
	bit   uint32
	names []string
}

var compatFeatures = []feature{
	{disk.CompatSBChecksum, []string{"sb_csum"}},
	{disk.CompatMtime, []string{"mtime"}},
	{disk.CompatXattrFilter, []string{"xattr_filter"}},
	{disk.CompatSharedEAInMetabox, []string{"shared_ea_in_metabox"}},
	{disk.CompatPlainXattrPrefix, []string{"plain_xattr_pfx"}},
	{disk.CompatIshareXattrs, []string{"ishare_xattrs"}},
}

var incompatFeatures = []feature{
	{disk.IncompatLZ4ZeroPadding, []string{"lz4_0padding"}},
	{disk.IncompatComprCfgs, []string{"compr_cfgs", "big_pcluster"}},
	{disk.IncompatChunkedFile, []string{"chunked_file"}},
	{disk.IncompatDeviceTable, []string{"device_table"}},
	{disk.IncompatZtailpacking, []string{"ztailpacking"}},
	{disk.IncompatFragments, []string{"fragments", "dedupe"}},
	{disk.IncompatXattrPrefixes, []string{"xattr_prefixes"}},
	{disk.Incompat48Bit, []string{"48bit"}},
	{disk.IncompatMetabox, []string{"metabox"}},
}

// algorithmNames are the compression algorithms by their number.
var algorithmNames = [disk.AlgEnd]string{"LZ4", "LZMA", "DEFLATE", "Zstandard"}

// Features returns the names of the set feature bits, compatible ones first,
// as dump.erofs prints them. A bit without a name is "compat_0x…" or
// "incompat_0x…".
func (s *Superblock) Features() []string {
	names := appendFeatures(nil, s.FeatureCompat, compatFeatures, "compat")
	return appendFeatures(names, s.FeatureIncompat, incompatFeatures, "incompat")
}

func appendFeatures(names []string, bits uint32, known []feature, kind string) []string {
	for _, f := range known {
		if bits&f.bit != 0 {
			names = append(names, f.names...)
			bits &^= f.bit
		}
	}
	if bits != 0 {
		names = append(names, fmt.Sprintf("%s_0x%x", kind, bits))
	}
	return names
}

// checkFeatures refuses an image that needs what this package does not know, by
// number. All features up to disk.IncompatAll are read.
func checkFeatures(sb *disk.SuperBlock) error {
	if unknown := sb.FeatureIncompat &^ disk.IncompatAll; unknown != 0 {
		return fail(ErrUnsupported, "superblock", 0, disk.SuperBlockOffset,
			"unknown incompatible features 0x%x", unknown)
	}
	if sb.FeatureIncompat&disk.IncompatComprCfgs == 0 {
		return nil
	}
	if unknown := sb.ComprAlgs >> disk.AlgEnd << disk.AlgEnd; unknown != 0 {
		return fail(ErrUnsupported, "superblock", 0, disk.SuperBlockOffset,
			"unknown compression algorithms 0x%x", unknown)
	}
	return nil
}
