package images

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// builder makes a tree and fails the test at the first error.
type builder struct {
	t    testing.TB
	root string
	rng  *rand.Rand
}

// SmallTree makes a tree of a few thousand files, about 20 MB, with everything
// that is odd in a file system and returns its directory. It is the same in
// every run but for the directories' inode numbers. It needs root and a
// temporary directory whose file system takes user, trusted and security
// attributes and POSIX ACLs.
func SmallTree(t testing.TB) string {
	t.Helper()
	Need(t, "root", os.Getuid() == 0)
	b := &builder{t: t, root: t.TempDir(), rng: rand.New(rand.NewPCG(2019, 5))}
	b.odd(5 << 20)
	b.times() // last: it sets the time of every file
	return b.root
}

// odd makes everything that is odd; big files have about so many bytes.
func (b *builder) odd(big int) {
	b.sizes()
	b.big(big)
	b.sparse()
	b.links()
	b.special()
	b.names()
	b.owners()
	b.xattrs()
}

// TinyTree makes a tree of a dozen files, below 20 KB: for fuzzing and for
// tests that flip every byte. Parts of its data compress, and some are there
// twice.
func TinyTree(t testing.TB) string {
	t.Helper()
	Need(t, "root", os.Getuid() == 0)
	b := &builder{t: t, root: t.TempDir(), rng: rand.New(rand.NewPCG(1, 1))}
	b.file("empty", nil)
	b.file("one", []byte("1"))
	b.file("text", bytes.Repeat([]byte("EROFS "), 300))
	b.file("block", b.random(4096))
	b.file("dir/tail", b.random(4099))
	words := b.text(3000)
	b.file("words", words)
	b.file("dir/more words", append(b.text(700), words[100:2800]...))
	for i := range 8 {
		b.file(fmt.Sprintf("dir/sub/f%02d", i), []byte{byte(i)})
	}
	b.check(os.Symlink("dir/tail", b.path("link")))
	b.check(os.Link(b.path("text"), b.path("hard")))
	b.check(unix.Mknod(b.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	b.check(unix.Mkfifo(b.path("fifo"), 0o600))
	for _, name := range []string{"one", "text", "block", "dir"} {
		b.xattr(name, "user.shared", []byte("the same everywhere"))
	}
	b.xattr("one", "trusted.only", []byte("here"))
	b.acl("dir")
	b.times()
	return b.root
}

// BlocksTree is TinyTree with files that take several blocks of up to 64 KiB even
// when they are compressed, and yet have few bytes of information.
func BlocksTree(t testing.TB) string {
	t.Helper()
	b := &builder{t: t, root: TinyTree(t), rng: rand.New(rand.NewPCG(65536, 1))}
	words, noise := b.text(2000), b.random(36_000)
	var text bytes.Buffer
	for i := range 150 {
		fmt.Fprintf(&text, "%d ", i*i)
		text.Write(words)
	}
	b.file("long/text", text.Bytes())
	b.file("long/mixed", append(append(text.Bytes()[1000:200_000:200_000], noise...), text.Bytes()[5000:90_000]...))
	b.file("long/again", append(text.Bytes()[:150_000:150_000], "another end"...))
	b.times()
	return b.root
}

// OverlayMarks adds what means something to overlayfs to a tree: whiteouts,
// opaque directories and redirects, which a reader must show as they are.
func OverlayMarks(t testing.TB, root string) {
	t.Helper()
	b := &builder{t: t, root: root, rng: rand.New(rand.NewPCG(7, 7))}
	b.file("overlay/redirected", []byte("not what the attribute says"))
	b.file("overlay/opaque/file", []byte("x"))
	b.check(unix.Mknod(b.path("overlay/whiteout"), unix.S_IFCHR, 0))
	b.xattr("overlay/opaque", "trusted.overlay.opaque", []byte("y"))
	b.xattr("overlay/redirected", "trusted.overlay.redirect", []byte("/elsewhere"))
	b.xattr("overlay/redirected", "trusted.overlay.metacopy", nil)
	b.xattr("overlay/redirected", "trusted.overlay.overlay.nested", []byte("1"))
	b.xattr("overlay", "user.overlay.example", []byte("u"))
	b.times()
}

// RealTree returns a directory with a real tree of at least 5,000 files: the
// sources of the Go installation. Nobody may change it.
func RealTree(t testing.TB) string {
	t.Helper()
	dir, n := goTree()
	Need(t, "a Go installation with 5,000 files", n >= 5000)
	return dir
}

var goTree = sync.OnceValues(func() (string, int) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", 0
	}
	dir, n := filepath.Join(strings.TrimSpace(string(out)), "src"), 0
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	return dir, n
})

func (b *builder) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *builder) path(name string) string { return filepath.Join(b.root, name) }

// file writes a file and makes the directories above it.
func (b *builder) file(name string, data []byte) {
	b.t.Helper()
	b.check(os.MkdirAll(filepath.Dir(b.path(name)), 0o755))
	b.check(os.WriteFile(b.path(name), data, 0o644))
}

func (b *builder) xattr(name, attr string, value []byte) {
	b.t.Helper()
	err := unix.Lsetxattr(b.path(name), attr, value, 0)
	Need(b.t, "a temporary directory with extended attributes", err != unix.ENOTSUP)
	b.check(err)
}

// random is n bytes that do not compress.
func (b *builder) random(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(b.rng.Uint32())
	}
	return p
}

// text is n bytes that compress well, with matches near and far.
func (b *builder) text(n int) []byte {
	words := make([]string, 400)
	for i := range words {
		words[i] = fmt.Sprintf("%x", b.rng.Uint32N(1<<20))
	}
	var out bytes.Buffer
	for out.Len() < n {
		out.WriteString(words[b.rng.IntN(len(words))])
		out.WriteByte(" \n"[b.rng.IntN(8)/7])
	}
	return out.Bytes()[:n]
}

// sizes are those around every block size.
func (b *builder) sizes() {
	for _, n := range []int{
		0, 1, 511, 512, 513, 1023, 1024, 1025, 4000, 4095, 4096, 4097, 8191, 8192, 8193,
		16384, 65535, 65536, 65537, 131071,
	} {
		b.file(fmt.Sprintf("sizes/random-%d", n), b.random(n))
		b.file(fmt.Sprintf("sizes/text-%d", n), b.text(n))
	}
}

// big files do not, or well, or partly compress.
func (b *builder) big(n int) {
	b.file("big/random", b.random(n+123))
	b.file("big/text", b.text(n+n/5+4095))
	b.file("big/zero", make([]byte, n*3/5+1))
	mixed := append(b.text(n/5), b.random(n/5)...)
	b.file("big/mixed", append(append(mixed, make([]byte, n/5)...), b.text(n/7)...))
	b.file("big/same-as-mixed", mixed)
}

// sparse files have holes at the start, in the middle and at the end.
func (b *builder) sparse() {
	write := func(name string, size int64, at ...int64) {
		b.file(name, nil)
		f, err := os.OpenFile(b.path(name), os.O_WRONLY, 0)
		b.check(err)
		b.check(f.Truncate(size))
		for _, off := range at {
			_, err := f.WriteAt(b.random(5000), off)
			b.check(err)
		}
		b.check(f.Close())
	}
	write("sparse/all", 2<<20)
	write("sparse/middle", 3<<20+17, 1<<20)
	write("sparse/start-and-end", 2<<20, 0, 2<<20-5000)
	write("sparse/many", 4<<20, 65536, 1<<20, 1<<20+8192, 3<<20)
}

func (b *builder) links() {
	b.file("links/a", []byte("hard"))
	b.check(os.Link(b.path("links/a"), b.path("links/b")))
	b.check(os.MkdirAll(b.path("links/d"), 0o755))
	b.check(os.Link(b.path("links/a"), b.path("links/d/c")))
	b.check(os.Symlink("a", b.path("links/short")))
	b.check(os.Symlink("/no/such/target", b.path("links/dangling")))
	b.check(os.Symlink(strings.Repeat("x/", 120)+"y", b.path("links/long")))
	b.check(os.Symlink(strings.Repeat("0123456789abcde/", 255)+"0123456789abcd", b.path("links/longest"))) // 4094 bytes
	b.check(os.Symlink("\xff\xfe\n", b.path("links/bytes")))
	b.check(os.Link(b.path("links/short"), b.path("links/short-hard")))
}

func (b *builder) special() {
	mknod := func(name string, mode uint32, major, minor uint32) {
		b.check(unix.Mknod(b.path(name), mode, int(unix.Mkdev(major, minor))))
	}
	b.check(os.MkdirAll(b.path("special"), 0o755))
	b.check(unix.Mkfifo(b.path("special/fifo"), 0o640))
	mknod("special/socket", unix.S_IFSOCK|0o777, 0, 0)
	mknod("special/null", unix.S_IFCHR|0o666, 1, 3)
	mknod("special/char-wide", unix.S_IFCHR|0o600, 4095, 1048575)
	mknod("special/block", unix.S_IFBLK|0o660, 8, 1)
	mknod("special/block-minor-256", unix.S_IFBLK|0o660, 259, 256)
	mknod("special/block-wide", unix.S_IFBLK|0o660, 511, 0xabcde)
	for name, mode := range map[string]uint32{
		"setuid": 0o4755, "setgid": 0o2755, "sticky": 0o1644, "none": 0, "all": 0o7777,
	} {
		b.file("special/mode-"+name, []byte(name))
		b.check(unix.Chmod(b.path("special/mode-"+name), mode))
	}
	b.check(os.MkdirAll(b.path("special/sticky-dir"), 0o755))
	b.check(unix.Chmod(b.path("special/sticky-dir"), 0o3777))
}

func (b *builder) names() {
	b.file("names/"+strings.Repeat("n", 255), []byte("long"))
	b.file("names/"+strings.Repeat("n", 254)+"m", []byte("long"))
	b.file("names/"+strings.Repeat("ü", 127), []byte("utf-8"))
	for _, name := range []string{
		"\xff\xfe\x80", "\x01\x1f\x7f", "a", "a-", "a.b", "A", "aa", " ", "new\nline", "-rf", "...", ".hidden", "..x",
		"\xc3\x28", "\xf0\x9f\x90\x98", "back\\slash", "quote\"'",
	} {
		b.file("names/"+name, []byte(name))
	}
	for i := range 3000 {
		b.file(fmt.Sprintf("many/entry-%d-%x", i, i*i), nil)
	}
	for i := range 200 { // names that fill blocks to the last byte, or nearly
		b.file(fmt.Sprintf("wide/%s%03d", strings.Repeat("w", 200+i%56-3), i), nil)
	}
	b.check(os.MkdirAll(b.path("emptydir"), 0o700))
	b.file(strings.Repeat("deep-directory-name/", 120)+"bottom", []byte("here"))
}

func (b *builder) owners() {
	for i, id := range [][2]int{{0, 1}, {65535, 65535}, {65536, 1000}, {1000, 65536}, {0xfffffffe, 0xfffffffe}, {1 << 31, 3}} {
		name := fmt.Sprintf("owners/%d", i)
		b.file(name, []byte(name))
		b.check(unix.Lchown(b.path(name), id[0], id[1]))
	}
	b.check(os.Symlink("0", b.path("owners/link")))
	b.check(unix.Lchown(b.path("owners/link"), 70000, 70001))
}

func (b *builder) xattrs() {
	b.file("xattrs/user", []byte("u"))
	b.xattr("xattrs/user", "user.a", []byte("value of a"))
	b.xattr("xattrs/user", "user.empty", nil)
	b.xattr("xattrs/user", "user.binary", b.random(300))
	b.xattr("xattrs/user", "user."+strings.Repeat("n", 250), []byte("long name"))
	b.file("xattrs/big", []byte("b"))
	b.xattr("xattrs/big", "user.big", b.random(3500))
	b.file("xattrs/security", []byte("s"))
	b.xattr("xattrs/security", "security.example", []byte("label\x00"))
	b.file("xattrs/trusted", []byte("t"))
	b.xattr("xattrs/trusted", "trusted.example", []byte("only root sees it"))
	b.file("xattrs/capability", []byte("c"))
	b.xattr("xattrs/capability", "security.capability", []byte{
		1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	})
	b.file("xattrs/prefixed", []byte("p"))
	for _, name := range []string{"user.project.name", "user.project.id", "trusted.project.secret", "user.projecting"} {
		b.xattr("xattrs/prefixed", name, []byte(name))
	}
	for i := range 12 { // common ones go to the shared area
		name := fmt.Sprintf("xattrs/shared-%d", i)
		b.file(name, []byte(name))
		b.xattr(name, "user.mime", []byte("text/plain; charset=utf-8"))
		b.xattr(name, "user.project.common", []byte(strings.Repeat("shared value ", 20)))
		b.xattr(name, "user.own", []byte(name))
		b.xattr(name, fmt.Sprintf("user.third-%d", i%3), b.random(40))
	}
	b.check(os.MkdirAll(b.path("xattrs/dir"), 0o755))
	b.xattr("xattrs/dir", "user.on-directory", []byte("d"))
	b.acl("xattrs/dir")
	b.file("xattrs/acl-file", []byte("acl"))
	b.setACL("xattrs/acl-file", "system.posix_acl_access", 1000, 65540)
	b.check(os.Symlink("user", b.path("xattrs/link")))
	b.xattr("xattrs/link", "trusted.on-link", []byte("l"))
	b.check(unix.Mkfifo(b.path("xattrs/fifo"), 0o600))
	b.xattr("xattrs/fifo", "trusted.on-fifo", []byte("f"))
}

// acl gives a directory an access and a default ACL.
func (b *builder) acl(name string) {
	b.t.Helper()
	b.setACL(name, "system.posix_acl_access", 1000)
	b.setACL(name, "system.posix_acl_default", 1000, 2000)
}

// setACL sets an ACL with the three classes, named users and a mask, in the
// form of linux/posix_acl_xattr.h.
func (b *builder) setACL(name, attr string, users ...uint32) {
	b.t.Helper()
	const (
		version                              = 2
		userObj, user, groupObj, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
		undefined                            = ^uint32(0)
	)
	acl := binary.LittleEndian.AppendUint32(nil, version)
	entry := func(tag, perm uint16, id uint32) {
		acl = binary.LittleEndian.AppendUint16(acl, tag)
		acl = binary.LittleEndian.AppendUint16(acl, perm)
		acl = binary.LittleEndian.AppendUint32(acl, id)
	}
	entry(userObj, 7, undefined)
	for _, id := range users {
		entry(user, 6, id)
	}
	entry(groupObj, 5, undefined)
	entry(mask, 7, undefined)
	entry(other, 4, undefined)
	b.xattr(name, attr, acl)
}

// times gives every file a time of its own, also far from today's, deepest
// first, so that those of the directories stay.
func (b *builder) times() {
	var paths []string
	b.check(filepath.WalkDir(b.root, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	base := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC).Unix()
	for i := len(paths) - 1; i >= 0; i-- {
		ts := unix.Timespec{Sec: base + int64(i), Nsec: int64(i) * 7919 % 1e9}
		switch i % 17 {
		case 3:
			ts = unix.Timespec{Sec: -1 - int64(i), Nsec: 999999999}
		case 5:
			ts = unix.Timespec{Sec: 1<<32 + int64(i), Nsec: 1}
		case 7:
			ts = unix.Timespec{}
		}
		b.check(unix.UtimesNanoAt(unix.AT_FDCWD, paths[i], []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
}
