package holder

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Versions of the protocol that this package speaks, at either end. A holder is not
// restarted when the programs around it are upgraded, so the lowest stays for good.
const (
	minVersion = 1
	maxVersion = 1
)

// helloMagic begins the first message of a connection, in all versions.
const helloMagic = 0x45524f48

// Limits of one item.
const (
	MaxName  = 255      // bytes of a name, and of a key
	MaxMeta  = 32 << 10 // bytes of an item's Meta
	MaxFiles = 64       // descriptors of an item; Linux sends at most 253 (SCM_MAX_FD)
)

const (
	headerSize = 8
	// maxText bounds the text of an error.
	maxText = 1 << 10
	// maxMessage is the longest message there is, an item's.
	maxMessage = headerSize + 2 + MaxName + 4 + MaxMeta + 2
)

// kind tells what a message is. Each request has one answer of the same id; a claim
// has a kindBusy before it where it has to wait.
type kind uint16

const (
	kindHello  kind = 1 // lowest, highest: versions; kindHello, highest: the one to speak
	kindClaim  kind = 2 // name; kindBusy, kindOK
	kindPut    kind = 3 // key, meta, files, with the descriptors; kindOK
	kindDelete kind = 4 // key, which need not be there; kindOK
	kindNext   kind = 5 // key; kindItem, the first after that key, or kindEnd
	kindList   kind = 6 // name, key; kindEntry, the first after these, or kindEnd
	kindOpen   kind = 7 // path, reads, with a directory; kindOpened or kindErrno

	kindOK    kind = 64
	kindBusy  kind = 65 // pid: who has the name, 0 if the holder can't see it
	kindItem  kind = 66 // key, meta, files, with the descriptors
	kindEntry kind = 67 // name, claimed, pid, key, files, size; a name itself comes with key ""
	kindEnd   kind = 68
	kindError kind = 69 // code, text

	kindOpened kind = 70 // with the descriptor
	kindErrno  kind = 71 // errno
)

// code says why a request was refused.
type code uint16

const (
	codeProtocol code = 1 // a message that is none, is unknown, or is out of turn
	codeVersion  code = 2
	codeLimit    code = 3
	codeRefused  code = 4
)

// Errors of requests.
var (
	// ErrProtocol says that the other end does not speak as it should.
	ErrProtocol = errors.New("holder: protocol violated")
	// ErrVersion says that the ends have no version of the protocol in common.
	ErrVersion = errors.New("holder: no common version of the protocol")
	// ErrLimit says that an item, or all of them together, would be too large.
	ErrLimit = errors.New("holder: too much to keep")
	// ErrRefused says that the holder does not keep such descriptors, or does not
	// serve this client.
	ErrRefused = errors.New("holder: refused")
)

// errUnknown is the ErrProtocol of a kind that this version does not know.
var errUnknown = fmt.Errorf("%w: unknown message", ErrProtocol)

// err is the error that an answer of kindError is.
func (m *message) err() error {
	sentinel := ErrProtocol
	switch m.code {
	case codeVersion:
		sentinel = ErrVersion
	case codeLimit:
		sentinel = ErrLimit
	case codeRefused:
		sentinel = ErrRefused
	case codeProtocol:
	}
	return fmt.Errorf("%w: %s", sentinel, m.text)
}

// refusal is the answer that tells of an error.
func refusal(id uint32, err error) *message {
	m := &message{kind: kindError, id: id, code: codeProtocol, text: err.Error()}
	for c, sentinel := range map[code]error{codeVersion: ErrVersion, codeLimit: ErrLimit, codeRefused: ErrRefused} {
		if errors.Is(err, sentinel) {
			m.code = c
		}
	}
	if len(m.text) > maxText {
		m.text = m.text[:maxText]
	}
	return m
}

// message is one packet: kind (2 bytes), zero (2), id (4), then the fields of the
// kind, little endian. A name or key is its length (2) and bytes, meta likewise (4).
// A decoded meta is part of the packet's buffer.
type message struct {
	kind            kind
	id              uint32
	lowest, highest uint16
	name, key       string
	meta            []byte
	files           uint16 // descriptors that come with it, or of what it tells about
	claimed         uint16 // 1: a client has the name
	pid, size       uint32
	code            code
	text            string
	path            string
	reads           uint16 // 1: O_RDONLY, 0: O_PATH
	errno           uint32
}

// fields passes the message's fields through c, to write or to read them.
func (m *message) fields(c *coder) error {
	switch m.kind {
	case kindHello:
		magic := uint32(helloMagic)
		c.u32(&magic)
		if magic != helloMagic {
			c.fail("hello of another protocol")
		}
		c.u16(&m.lowest)
		c.u16(&m.highest)
	case kindClaim:
		c.str(&m.name, 1, MaxName)
	case kindPut, kindItem:
		c.str(&m.key, 1, MaxName)
		c.bytes(&m.meta, MaxMeta)
		c.u16(&m.files)
	case kindDelete:
		c.str(&m.key, 1, MaxName)
	case kindNext:
		c.str(&m.key, 0, MaxName)
	case kindList:
		c.str(&m.name, 0, MaxName)
		c.str(&m.key, 0, MaxName)
	case kindBusy:
		c.u32(&m.pid)
	case kindEntry:
		c.str(&m.name, 1, MaxName)
		c.u16(&m.claimed)
		c.u32(&m.pid)
		c.str(&m.key, 0, MaxName)
		c.u16(&m.files)
		c.u32(&m.size)
	case kindError:
		c.u16((*uint16)(&m.code))
		c.str(&m.text, 0, maxText)
	case kindOpen:
		c.str(&m.path, 1, MaxName)
		c.u16(&m.reads)
		c.u16(&m.files)
	case kindOpened:
		c.u16(&m.files)
	case kindErrno:
		c.u32(&m.errno)
	case kindOK, kindEnd:
	default:
		return errUnknown
	}
	return c.err
}

// encode is the packet of a message.
func (m *message) encode() ([]byte, error) {
	c := &coder{writes: true}
	k, zero := uint16(m.kind), uint16(0)
	c.u16(&k)
	c.u16(&zero)
	c.u32(&m.id)
	err := m.fields(c)
	return c.buf, err
}

// decode reads a packet. Its error wraps ErrProtocol; kind and id are set unless the
// packet has no header.
func (m *message) decode(packet []byte) error {
	*m = message{}
	c := &coder{buf: packet}
	var k, zero uint16
	c.u16(&k)
	c.u16(&zero)
	c.u32(&m.id)
	if c.err != nil {
		return c.err
	}
	m.kind = kind(k)
	if zero != 0 {
		c.fail("reserved bytes are set")
	}
	if err := m.fields(c); err != nil {
		return err
	}
	if len(c.buf) > 0 {
		c.fail("message is longer than its fields")
	}
	return c.err
}

// coder writes fields to the end of buf, or reads them from its begin. After an error
// it does nothing.
type coder struct {
	buf    []byte
	writes bool
	err    error
}

func (c *coder) fail(what string) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s", ErrProtocol, what)
	}
}

// take is the next n bytes to read.
func (c *coder) take(n int) []byte {
	if c.err == nil && len(c.buf) < n {
		c.fail("message is cut off")
	}
	if c.err != nil {
		return nil
	}
	b := c.buf[:n:n]
	c.buf = c.buf[n:]
	return b
}

func (c *coder) u16(v *uint16) {
	if c.writes {
		c.buf = binary.LittleEndian.AppendUint16(c.buf, *v)
	} else if b := c.take(2); b != nil {
		*v = binary.LittleEndian.Uint16(b)
	}
}

func (c *coder) u32(v *uint32) {
	if c.writes {
		c.buf = binary.LittleEndian.AppendUint32(c.buf, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.LittleEndian.Uint32(b)
	}
}

func (c *coder) str(v *string, shortest, longest int) {
	n := uint16(min(len(*v), 1<<16-1))
	c.u16(&n)
	if c.err == nil && (int(n) < shortest || int(n) > longest) {
		c.fail(fmt.Sprintf("%d bytes of text, want %d to %d", n, shortest, longest))
	}
	if c.err != nil {
		return
	}
	if c.writes {
		c.buf = append(c.buf, *v...)
	} else if b := c.take(int(n)); b != nil {
		*v = string(b)
	}
}

func (c *coder) bytes(v *[]byte, longest int) {
	n := uint32(min(len(*v), 1<<31))
	c.u32(&n)
	if c.err == nil && int64(n) > int64(longest) {
		c.fail(fmt.Sprintf("%d bytes, want at most %d", n, longest))
	}
	if c.err != nil {
		return
	}
	if c.writes {
		c.buf = append(c.buf, *v...)
	} else if b := c.take(int(n)); b != nil {
		*v = b
	}
}
