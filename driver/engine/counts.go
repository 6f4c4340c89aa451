package engine

import "github.com/erofs-csi/erofs-csi/erofs/fusefs"

// Counts are what happened since the engine was started.
type Counts struct {
	Hashed int64 // images whose files were hashed
	// Unreadable and Forged are the files of these that share with no other, because
	// they can't be read or are not what the image says of them.
	Unreadable, Forged int64
	// Reads are those of the process.
	Reads fusefs.ReadCounts
}

// Counts returns what happened so far.
func (e *Engine) Counts() Counts {
	return Counts{
		Hashed: e.hashed.Load(), Unreadable: e.unreadable.Load(), Forged: e.forged.Load(),
		Reads: fusefs.CountReads(),
	}
}
