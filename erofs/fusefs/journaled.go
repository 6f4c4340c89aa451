package fusefs

import (
	"errors"
	"fmt"
	"log"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The opcodes that are looked at here.
const (
	forgetOp      = 2  // FUSE_FORGET
	readOp        = 15 // FUSE_READ
	getXattrOp    = 22 // FUSE_GETXATTR
	listXattrOp   = 23 // FUSE_LISTXATTR
	readDirOp     = 28 // FUSE_READDIR
	interruptOp   = 36 // FUSE_INTERRUPT
	batchForgetOp = 42 // FUSE_BATCH_FORGET
	readDirPlusOp = 44 // FUSE_READDIRPLUS
)

const (
	// uniqueResent marks the number of a request that comes again (FUSE_UNIQUE_RESEND),
	// for ledger.Seen. The kernels of journals know no such mark: it is not in answers.
	uniqueResent = 1 << 63

	minReaders, maxReaders = 2, 16

	// fixedReply bounds the part of an answer whose size is not the request's to say: a
	// header, and a structure or the target of a link.
	fixedReply = 8 << 10
	smallReply = fixedReply + windowSize
	largeReply = fixedReply + requestSize
)

// unanswered tells whether requests of this kind have no answer. No other process deals
// with them again: what is forgotten and not noted is found by FS.Verify.
func unanswered(op uint32) bool { return op == forgetOp || op == batchForgetOp || op == interruptOp }

// journaled answers the requests of a session in go-fuse's place, where they must be in
// a journal from the moment that the kernel gives them away. go-fuse has its own memory
// for them; it still parses and answers all but READ, which would be copied once more.
//
// As there, a goroutine that has read a request answers it, and another one reads
// meanwhile. Interrupts are not acted on: no request here waits for anything that would
// end sooner.
type journaled struct {
	fs      fuse.RawFileSystem
	proto   *fuse.ProtocolServer
	fd      int // of /dev/fuse
	journal *journal
	left    []int32 // slots with requests that another process left

	goroutines sync.WaitGroup

	mu      sync.Mutex
	reading int      // goroutines that read; GUARDED_BY(mu)
	rests   [][]byte // see next; GUARDED_BY(mu)
	rest    int      // size of each
}

// newJournaled makes the server of a session that began with the INIT request given.
// Its /dev/fuse is fd.
func newJournaled(fs fuse.RawFileSystem, options *fuse.MountOptions, fd int, init []byte, k *requestKeeping) (*journaled, error) {
	s := &journaled{fs: fs, proto: fuse.NewProtocolServer(fs, options), fd: fd, rest: options.MaxWrite + minRead}
	reply := make([]byte, fixedReply)
	if n, status := s.proto.HandleRequest([][]byte{init}, [][]byte{reply}); status != fuse.OK || n < outHeader+initOutSize {
		return nil, fmt.Errorf("%w: answer to INIT of %d bytes: %v", ErrOtherSession, n, status)
	}
	var err error
	s.journal, s.left, err = openJournal(k.file)
	return s, err
}

// serve answers what was left, and all requests until the session ends.
func (s *journaled) serve() error {
	for _, slot := range s.left {
		s.goroutines.Go(func() {
			if request := s.journal.kept(slot); request != nil {
				s.answer(request)
			}
			s.journal.free(slot)
		})
	}
	s.goroutines.Go(s.loop)
	s.goroutines.Wait()
	return s.journal.close()
}

// loop reads requests and answers them until the session ends or enough others read.
func (s *journaled) loop() {
	for {
		rest, ok := s.enter()
		if !ok {
			return
		}
		slot, request, err := s.next(rest)
		alone := s.leave(rest)
		if err != nil {
			if !errors.Is(err, unix.ENODEV) { // the session has ended
				log.Printf("read a FUSE request: %v", err)
			}
			return
		}
		if alone {
			s.goroutines.Go(s.loop)
		}
		s.answer(request)
		s.journal.free(slot)
	}
}

// enter tells whether the caller may read, and returns the memory for it.
func (s *journaled) enter() (rest []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reading >= min(max(runtime.GOMAXPROCS(0), minReaders), maxReaders) {
		return nil, false
	}
	s.reading++
	if n := len(s.rests); n > 0 {
		rest, s.rests = s.rests[n-1], s.rests[:n-1]
		return rest, true
	}
	return make([]byte, s.rest), true
}

// leave is called when a caller of enter has read; it tells whether nobody else reads.
func (s *journaled) leave(rest []byte) (alone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading--
	s.rests = append(s.rests, rest)
	return s.reading == 0
}

// next reads a request. rest is memory for what is longer than a slot: the kernel wants
// to be given room for the longest request that there could be.
func (s *journaled) next(rest []byte) (slot int32, request []byte, err error) {
	for {
		slot = s.journal.take()
		n, err := unix.Readv(s.fd, [][]byte{s.journal.slot(slot), rest})
		if err == nil && n < inHeader {
			err = fmt.Errorf("it has %d bytes", n)
		}
		if err == nil {
			request = s.journal.slot(slot)[:min(n, slotSize)]
			if n > slotSize {
				request = slices.Concat(request, rest[:n-slotSize])
			}
			if headerOf(request).Opcode != interruptOp {
				return slot, request, nil
			}
		}
		s.journal.free(slot)
		// ENOENT: it was given up while it was copied.
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOENT) {
			return 0, nil, err
		}
	}
}

// answer answers a request.
func (s *journaled) answer(request []byte) {
	h := headerOf(request)
	buf, done := replyBuffer(fixedReply + replySize(request))
	defer done()
	if h.Opcode == readOp && len(request) >= int(unsafe.Sizeof(fuse.ReadIn{})) {
		s.read((*fuse.ReadIn)(unsafe.Pointer(&request[0])), buf)
		return
	}
	n, status := s.proto.HandleRequest([][]byte{request}, [][]byte{buf})
	if n > 0 && replyHeader(buf).Length != uint32(n) { // it was cut off
		status = fuse.EIO
	}
	if status != fuse.OK {
		n = outHeader
		*replyHeader(buf) = fuse.OutHeader{Length: uint32(outHeader), Status: -int32(status), Unique: h.Unique}
	}
	if n > 0 {
		s.write(buf[:n])
	}
}

// read answers a READ without a copy of what the file system has elsewhere.
func (s *journaled) read(in *fuse.ReadIn, buf []byte) {
	head, buf := buf[:outHeader], buf[outHeader:]
	result, status := s.readResult(in, buf[:min(in.Size, requestSize)])
	reply := [][]byte{head}
	if result != nil {
		defer result.Done()
		if status == fuse.OK {
			var parts [][]byte
			if parts, status = partsOf(result, buf); status == fuse.OK {
				reply = append(reply, parts...)
			}
		}
	}
	length := 0
	for _, part := range reply {
		length += len(part)
	}
	*replyHeader(head) = fuse.OutHeader{Length: uint32(length), Status: -int32(status), Unique: in.Unique}
	s.write(reply...)
}

func (s *journaled) readResult(in *fuse.ReadIn, buf []byte) (result fuse.ReadResult, status fuse.Status) {
	defer func() {
		if what := recover(); what != nil {
			result, status = nil, panicked(what)
		}
	}()
	return s.fs.Read(nil, in, buf)
}

// partsOf are the bytes of a result, in buf if it has them nowhere.
func partsOf(result fuse.ReadResult, buf []byte) ([][]byte, fuse.Status) {
	if r, ok := result.(interface {
		Slices() ([][]byte, fuse.Status)
	}); ok {
		return r.Slices()
	}
	data, status := result.Bytes(buf)
	return [][]byte{data}, status
}

// write sends an answer.
func (s *journaled) write(reply ...[]byte) {
	h := replyHeader(reply[0])
	h.Unique &^= uniqueResent
	for {
		_, err := unix.Writev(s.fd, reply)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
			// Nobody waits for it: it was answered before, or the session has ended.
		default:
			log.Printf("answer a FUSE request: %v", err)
		}
		return
	}
}

func replyHeader(reply []byte) *fuse.OutHeader { return (*fuse.OutHeader)(unsafe.Pointer(&reply[0])) }

// replySize is how many bytes a request asks for, beside what all answers have.
func replySize(request []byte) int {
	size := uint32(0)
	switch headerOf(request).Opcode {
	case readOp, readDirOp, readDirPlusOp:
		if len(request) >= int(unsafe.Sizeof(fuse.ReadIn{})) {
			size = (*fuse.ReadIn)(unsafe.Pointer(&request[0])).Size
		}
	case getXattrOp, listXattrOp:
		if len(request) >= int(unsafe.Sizeof(fuse.GetXAttrIn{})) {
			size = (*fuse.GetXAttrIn)(unsafe.Pointer(&request[0])).Size
		}
	}
	return int(min(size, requestSize)) // the kernel asks for no more: it is MaxWrite
}

// The buffers of answers: for requests of a window and less, and all others. In each
// only what was used takes memory.
var (
	smallReplies = sync.Pool{New: func() any { return new([smallReply]byte) }}
	largeReplies = sync.Pool{New: func() any { return new([largeReply]byte) }}
)

// replyBuffer returns a buffer of n bytes, n ≤ largeReply, and what gives it back.
func replyBuffer(n int) (buf []byte, done func()) {
	if n <= smallReply {
		b := smallReplies.Get().(*[smallReply]byte)
		return b[:n], func() { smallReplies.Put(b) }
	}
	b := largeReplies.Get().(*[largeReply]byte)
	return b[:n], func() { largeReplies.Put(b) }
}
