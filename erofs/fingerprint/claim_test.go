package fingerprint_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// claimTree has equal files, an empty one, a hard link, and one with an attribute.
func claimTree(t *testing.T) string {
	t.Helper()
	tree := write(t, map[string][]byte{
		"a": bytes.Repeat([]byte("some text "), 2000), "copy": bytes.Repeat([]byte("some text "), 2000), "copy2": bytes.Repeat([]byte("some text "), 2000),
		"b": []byte("b"), "d/c": bytes.Repeat([]byte{7}, 100_000), "empty": nil,
	})
	if err := os.Link(filepath.Join(tree, "a"), filepath.Join(tree, "hard")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(tree, "b"), "user.note", []byte("hello"), 0); err != nil {
		t.Fatal(err)
	}
	return tree
}

// What an image says of its files is found wherever mkfs.erofs and the format may put
// it, is what we compute, and is what the kernel shows where it has a name.
func TestClaimsInEveryPlace(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return
	}
	tree := claimTree(t)
	aSum := sha256.Sum256(bytes.Repeat([]byte("some text "), 2000))
	for _, tt := range []struct {
		name   string
		opts   string
		xattr  string // by which the kernel shows it; "" when it is hidden
		copies int    // of a's digest in the image, always inline with mkfs.erofs; -1: compressed
		has    string
	}{
		{"default name", "--xattr-inode-digest", "", 3, "ishare_xattrs"},
		{"user", "--xattr-inode-digest=user.fp", "user.fp", 3, "plain_xattr_pfx"},
		{"trusted", "--xattr-inode-digest=trusted.a.long.name.of.a.digest", "trusted.a.long.name.of.a.digest", 3, "xattr_prefixes"},
		{"security", "--xattr-inode-digest=security.fp", "security.fp", 3, ""},
		{"among other prefixes", "--xattr-prefix=user.no --xattr-prefix=user.f --xattr-inode-digest=user.fp", "user.fp", 3, ""},
		{"packed inode", "-zlz4 -Eall-fragments --xattr-inode-digest=user.fp", "user.fp", 3, "fragments"},
		{"metabox", "-m4096 --xattr-inode-digest=user.fp", "user.fp", -1, "metabox"},
		{"metabox, compressed", "-zlz4 -m4096:zstd -Eall-fragments --xattr-inode-digest", "", -1, "metabox"},
		{"name filter", "-Exattr-name-filter --xattr-inode-digest=user.fp", "user.fp", 3, "xattr_filter"},
		{"small blocks", "-b512 --xattr-inode-digest=user.fp", "user.fp", 3, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := images.Build(t, mkfs, strings.Fields(tt.opts), tree)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			im, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			sb := im.Superblock()
			if features := sb.Features(); tt.has != "" && !slices.Contains(features, tt.has) {
				t.Errorf("features %v: no %s, this test proves nothing", features, tt.has)
			}
			if n := bytes.Count(data, aSum[:]); tt.copies >= 0 && n != tt.copies {
				t.Errorf("the digest is there %d times, want %d", n, tt.copies)
			}
			ix, files, r := build(t, im, int64(len(data)))
			claimed, err := fingerprint.Claimed(im, files)
			if err != nil || r.Forged != 0 || r.Unreadable != 0 || claimed.Len() != 5 || ix.Len() != 5 {
				t.Fatalf("claimed %d, computed %d, %+v, %v; want 5 files", claimed.Len(), ix.Len(), r, err)
			}
			for _, f := range files {
				want, _ := ix.Lookup(f.NID)
				if got, ok := claimed.Lookup(f.NID); !ok || got != want {
					t.Errorf("nid %d: claimed %x (%v), computed %x", f.NID, got, ok, want)
				}
			}
			if c, err := fingerprint.CheckClaims(im, ix); err != nil || c != (fingerprint.Claims{Files: 5, Claimed: 5}) {
				t.Errorf("claims %+v, %v", c, err)
			}
			_, err = os.Stat("/sys/fs/erofs/features/metabox")
			if tt.xattr == "" || tt.has == "metabox" && err != nil {
				return // nothing that this kernel could show
			}
			dir := images.KernelMount(t, path)
			err = im.Walk(func(name string, in *erofs.Inode) error {
				value, ok, err := in.FingerprintValue()
				buf := make([]byte, 100)
				n, errno := unix.Lgetxattr(filepath.Join(dir, name), tt.xattr, buf)
				if ok != (errno == nil) || ok && string(buf[:n]) != string(value) {
					t.Errorf("%s: %q, the kernel has %q (%v)", name, value, buf[:max(n, 0)], errno)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// patched is an image with some bytes changed and its superblock's checksum mended.
func patched(t *testing.T, data []byte, change func([]byte)) (*erofs.Image, int64) {
	t.Helper()
	data = slices.Clone(data)
	change(data)
	clear(data[1028:1032])
	binary.LittleEndian.PutUint32(data[1028:], ^crc32.Checksum(data[1024:4096], crc32.MakeTable(crc32.Castagnoli)))
	im, err := erofs.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return im, int64(len(data))
}

// Whatever the kernel would share by must be what was hashed.
func TestCheckClaimsRefuses(t *testing.T) {
	data, err := os.ReadFile("testdata/digests.img") // see testdata/README
	if err != nil {
		t.Fatal(err)
	}
	good, evil := sha256.Sum256(bytes.Repeat([]byte("good"), 30)), sha256.Sum256(bytes.Repeat([]byte("evil"), 30))
	whole, size := patched(t, data, func([]byte) {})
	ix, files, _ := build(t, whole, size)
	for _, check := range []*fingerprint.Index{ix, nil} {
		if c, err := fingerprint.CheckClaims(whole, check); err != nil || c != (fingerprint.Claims{Files: 2, Claimed: 2}) {
			t.Errorf("an honest image: %+v, %v", c, err)
		}
	}
	evilNID := uint64(0)
	for _, f := range files {
		if sum, _ := ix.Lookup(f.NID); sum == evil {
			evilNID = f.NID
		}
	}
	tag := bytes.Index(data, evil[:]) - len("sha256:")
	for _, tt := range []struct {
		name    string
		change  func(data []byte)
		trusted bool // refused even if the fingerprints are trusted
		want    string
	}{
		{"another file's", func(data []byte) { copy(data[tag+7:], good[:]) }, false, `"evil" \(nid \d+\): .*found to be another`},
		{"nobody's", func(data []byte) { data[tag+8] ^= 1 }, false, `"evil" \(nid \d+\)`},
		{"another digest", func(data []byte) { copy(data[tag:], "sha512:") }, true, `"evil" .*39 bytes that are no SHA-256`},
		{"a shorter value", func(data []byte) { data[tag-2]-- }, true, `"evil" .*38 bytes that are no SHA-256`},
		{"no value", func(data []byte) { data[tag-2] = 0 }, true, `0 bytes`},
		{"a special inode's", func(data []byte) {
			// The packed inode of an image with fragments, and the table of prefixes not
			// in it: now it is a file, whose fingerprint another may have.
			data[1024+0x08] |= 0x10
			data[1024+0x50] |= 0x20
			binary.LittleEndian.PutUint64(data[1024+0x60:], evilNID)
		}, true, `special inode \(nid \d+\)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			im, size := patched(t, data, tt.change)
			files, err := fingerprint.Files(im)
			if err != nil {
				t.Fatal(err)
			}
			ix, r, err := fingerprint.Build(t.Context(), im, files, size)
			if err != nil {
				t.Fatal(err)
			}
			if ix.LeftOut() != r.Forged+r.Unreadable || ix.LeftOut()+ix.Len() != len(files) {
				t.Errorf("%d files are left out of %d, %+v", ix.LeftOut(), len(files), r)
			}
			var stored bytes.Buffer
			if err := ix.Write(&stored, "id"); err != nil {
				t.Fatal(err)
			}
			if back, err := reopen(t, filepath.Join(t.TempDir(), "index"), stored.Bytes(), "id"); err != nil || back.LeftOut() != ix.LeftOut() {
				t.Errorf("stored and read back: %v, another number of files left out", err)
			}
			_, err = fingerprint.CheckClaims(im, ix)
			if !errors.Is(err, fingerprint.ErrForged) || !regexp.MustCompile(tt.want).MatchString(err.Error()) {
				t.Errorf("error %v, want one of a forged fingerprint that says %s", err, tt.want)
			}
			if _, err := fingerprint.CheckClaims(im, nil); (err != nil) != tt.trusted {
				t.Errorf("trusted: %v, want an error %v", err, tt.trusted)
			}
			if tt.trusted && tt.want != `special inode \(nid \d+\)` {
				if ix, err := fingerprint.Claimed(im, files); err != nil || ix.Len() != 1 {
					t.Errorf("claimed %d of one good and a bad one, %v", ix.Len(), err)
				}
			}
		})
	}
	// A file that could not be hashed has not been compared.
	part, _, err := fingerprint.Build(t.Context(), whole, files[:1], size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fingerprint.CheckClaims(whole, part); !errors.Is(err, fingerprint.ErrForged) || !strings.Contains(err.Error(), "cannot be compared") {
		t.Errorf("a file that is not in the index: %v", err)
	}
}
