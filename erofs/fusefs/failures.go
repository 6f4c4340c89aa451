package fusefs

import "github.com/hanwen/go-fuse/v2/fuse"

// Failure is a READ request that was answered with an error.
type Failure struct {
	// Domain is the name of the file's domain, File what it is: nil if nothing is known of
	// it any more.
	Domain string
	File   *NodeUse
	Offset uint64 // of the request, in bytes
	Size   uint32 // of it, in bytes
	Err    error
}

// maxFailures is how many failures wait to be told of. Those beyond are counted only
// (ReadCounts.Failed): a damaged file may be read again and again.
const maxFailures = 8

var failures = make(chan Failure, maxFailures)

// Failures are the failed requests of the process, the first after each receive: who wants
// fewer receives less often.
func Failures() <-chan Failure { return failures }

// noteFailure notes why a request failed.
func (f *FS) noteFailure(in *fuse.ReadIn, err error) {
	if len(failures) == cap(failures) {
		return
	}
	failed := Failure{Domain: f.domain.Name(), Offset: in.Offset, Size: in.Size, Err: err}
	if use, ok := f.Node(in.NodeId); ok {
		failed.File = &use
	}
	select {
	case failures <- failed:
	default:
	}
}
