package engine

import "github.com/erofs-csi/erofs-csi/erofs/fusefs"

// Counts are what happened since the engine was started.
type Counts struct {
	Hashed int64 // images whose files were hashed
	// Unreadable and Forged are the files of these that share with no other, because
	// they can't be read or are not what the image says of them.
	Unreadable, Forged int64
	// Lost are mounts of an engine that is gone which could not be taken over, or were
	// aborted because a request was lost with it.
	Lost int64
	// Panics are requests that ended in a panic.
	Panics int64
	// Reads are those of the process.
	Reads fusefs.ReadCounts
}

// Counts returns what happened so far.
func (e *Engine) Counts() Counts {
	return Counts{
		Hashed: e.hashed.Load(), Unreadable: e.unreadable.Load(), Forged: e.forged.Load(),
		Lost: e.lost.Load() + fusefs.Lost(), Panics: fusefs.Panics(),
		Reads: fusefs.CountReads(),
	}
}
