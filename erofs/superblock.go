package erofs

// Superblock is the decoded superblock of an image.
type Superblock struct {
	BlockSize       int
	Blocks          uint64 // of the primary device
	Inodes          uint64
	RootNID         uint64
	UUID            [16]byte
	VolumeName      string
	BuildTime       int64 // seconds since 1970
	BuildTimeNsec   uint32
	FeatureCompat   uint32
	FeatureIncompat uint32
	MetaBlkAddr     uint32 // block of nid 0
	XattrBlkAddr    uint32 // block of the shared xattr area
	Checksum        uint32 // CRC32C as stored; meaningful with the sb_csum feature
	ExtraDevices    []DeviceSlot
}

// DeviceSlot is one entry of the device table.
type DeviceSlot struct {
	Tag    string // digest or name that mkfs gave, maybe empty
	Blocks uint64
}

// Features returns the names of the set feature bits, those of dump.erofs.
func (s *Superblock) Features() []string { return nil }
