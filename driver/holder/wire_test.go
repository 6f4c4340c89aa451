package holder

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// messages are one of each kind, with the packet that it is. These bytes are a contract
// with holders and clients of other releases.
var messages = []struct {
	m   message
	hex string
}{
	{message{kind: kindHello, id: 1, lowest: 1, highest: 2}, "0100 0000 01000000 484f5245 0100 0200"},
	{message{kind: kindClaim, id: 2, name: "node"}, "0200 0000 02000000 0400 6e6f6465"},
	{message{kind: kindPut, id: 3, key: "k", meta: []byte("abc"), files: 2}, "0300 0000 03000000 0100 6b 03000000 616263 0200"},
	{message{kind: kindDelete, id: 4, key: "k"}, "0400 0000 04000000 0100 6b"},
	{message{kind: kindNext, id: 5}, "0500 0000 05000000 0000"},
	{message{kind: kindList, id: 6, name: "n", key: "k"}, "0600 0000 06000000 0100 6e 0100 6b"},
	{message{kind: kindOK, id: 7}, "4000 0000 07000000"},
	{message{kind: kindBusy, id: 8, pid: 300}, "4100 0000 08000000 2c010000"},
	{message{kind: kindItem, id: 9, key: "k", meta: []byte{0}, files: 1}, "4200 0000 09000000 0100 6b 01000000 00 0100"},
	{message{kind: kindEntry, id: 10, name: "n", claimed: 1, pid: 7, key: "k", files: 3, size: 4}, "4300 0000 0a000000 0100 6e 0100 07000000 0100 6b 0300 04000000"},
	{message{kind: kindEnd, id: 11}, "4400 0000 0b000000"},
	{message{kind: kindOpen, id: 13, path: "a/b", reads: 1, files: 1}, "0700 0000 0d000000 0300 612f62 0100 0100"},
	{message{kind: kindOpened, id: 13, files: 1}, "4600 0000 0d000000 0100"},
	{message{kind: kindErrno, id: 13, errno: 2}, "4700 0000 0d000000 02000000"},
	{message{kind: kindError, id: 12, code: codeLimit, text: "full"}, "4500 0000 0c000000 0300 0400 66756c6c"},
}

func TestWire(t *testing.T) {
	for _, c := range messages {
		packet, err := c.m.encode()
		if err != nil {
			t.Fatalf("%+v: %v", c.m, err)
		}
		if want := strings.ReplaceAll(c.hex, " ", ""); hex.EncodeToString(packet) != want {
			t.Errorf("%+v: packet %x, want %s", c.m, packet, want)
		}
		var back message
		if err := back.decode(packet); err != nil || !reflect.DeepEqual(back, c.m) {
			t.Errorf("decoded %+v, %v; want %+v", back, err, c.m)
		}
		for n := range packet {
			if err := back.decode(packet[:n]); !errors.Is(err, ErrProtocol) {
				t.Errorf("%+v: %d of %d bytes: %v", c.m, n, len(packet), err)
			}
		}
		if err := back.decode(append(packet, 0)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%+v with a byte too many: %v", c.m, err)
		}
	}
}

// TestWireLimits: what is too long is refused on both sides, and what is not fits.
func TestWireLimits(t *testing.T) {
	longest := message{kind: kindPut, key: strings.Repeat("k", MaxName), meta: make([]byte, MaxMeta)}
	packet, err := longest.encode()
	if err != nil || len(packet) != maxMessage {
		t.Errorf("longest: %d bytes, %v; want %d", len(packet), err, maxMessage)
	}
	for name, m := range map[string]message{
		"no name":     {kind: kindClaim},
		"long name":   {kind: kindClaim, name: strings.Repeat("n", MaxName+1)},
		"longer name": {kind: kindClaim, name: strings.Repeat("n", 1<<16+1)},
		"no key":      {kind: kindPut},
		"much meta":   {kind: kindPut, key: "k", meta: make([]byte, MaxMeta+1)},
		"unknown":     {kind: 99},
	} {
		if _, err := m.encode(); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzMessage: any packet is a message, whose packet it is, or an error.
func FuzzMessage(f *testing.F) {
	for _, c := range messages {
		packet, err := c.m.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
		f.Add(packet[:len(packet)-1])
	}
	f.Add([]byte{3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 'k', 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, packet []byte) {
		var m message
		if err := m.decode(packet); err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("error %v", err)
			}
			return
		}
		back, err := m.encode()
		if err != nil || !bytes.Equal(back, packet) {
			t.Fatalf("%+v: packet %x, %v; was %x", m, back, err, packet)
		}
	})
}
