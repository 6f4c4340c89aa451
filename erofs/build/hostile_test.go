package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/build"
)

// memory is a File in memory.
type memory struct{ p []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.p).ReadAt(p, off)
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(m.p) {
		m.p = append(m.p, make([]byte, end-len(m.p))...)
	}
	return copy(m.p[off:], p), nil
}

func (m *memory) Truncate(size int64) error {
	if int(size) > len(m.p) {
		m.p = append(m.p, make([]byte, int(size)-len(m.p))...)
	}
	m.p = m.p[:size]
	return nil
}

// inMemory builds an image without a disk.
func inMemory(ctx context.Context, opts build.Options, fill func(b *build.Builder) error) ([]byte, error) {
	out := &memory{}
	b := build.New(ctx, out, &memory{}, opts)
	if err := fill(b); err != nil {
		return nil, err
	}
	_, err := b.Finish()
	return out.p, err
}

// listing is a line for each file of an image.
func listing(t testing.TB, image []byte) (lines []string) {
	t.Helper()
	im, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	err = im.Walk(func(path string, in *erofs.Inode) error {
		line := fmt.Sprintf("%s %o", path, in.Mode)
		switch {
		case in.IsRegular():
			p := make([]byte, in.Size)
			if _, err := in.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			line += fmt.Sprintf(" %.20q %d", p, in.Nlink)
		case in.IsSymlink():
			target, err := in.Readlink()
			if err != nil {
				return err
			}
			line += " " + target
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

// archive makes a tar archive of headers; the content of a file is its name.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func reg(name string) tar.Header { return tar.Header{Name: name} }
func dir(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}

func link(name, target string) tar.Header {
	return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}
}

func hard(name, target string) tar.Header {
	return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}
}

// TestNames: names that lead elsewhere lead to where they would in a root of their own,
// as containerd unpacks them.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]tar.Header
		want   []string // besides the root
	}{
		{"absolute", [][]tar.Header{{reg("/etc/passwd")}}, []string{`etc 40755`, `etc/passwd 100644 "/etc/passwd" 1`}},
		{"upwards", [][]tar.Header{{reg("../../a"), reg("b/../../c")}}, []string{`a 100644 "../../a" 1`, `c 100644 "b/../../c" 1`}},
		{"through a link", [][]tar.Header{{link("lib", "usr/lib"), reg("lib/x")}}, []string{"lib 120777 usr/lib", "usr 40755", "usr/lib 40755", `usr/lib/x 100644 "lib/x" 1`}},
		{"through an absolute link", [][]tar.Header{{dir("d"), link("l", "/d"), reg("l/x")}}, []string{"d 40755", `d/x 100644 "l/x" 1`, "l 120777 /d"}},
		{"through a link upwards", [][]tar.Header{{link("a/l", "../../../b"), reg("a/l/x")}}, []string{"a 40755", "a/l 120777 ../../../b", "b 40755", `b/x 100644 "a/l/x" 1`}},
		{"through a link below", [][]tar.Header{{dir("d"), link("l", "d")}, {reg("l/x")}}, []string{"d 40755", `d/x 100644 "l/x" 1`, "l 120777 d"}},
		{"over a link", [][]tar.Header{{dir("d"), link("l", "d"), dir("l"), reg("l/x")}}, []string{"d 40755", "l 40755", `l/x 100644 "l/x" 1`}},
		{"again", [][]tar.Header{{reg("a"), dir("a"), reg("a/b"), reg("a")}}, []string{`a 100644 "a" 1`}},
		{"hard link to a link", [][]tar.Header{{link("l", "nowhere"), hard("h", "/l")}}, []string{"h 120777 nowhere", "l 120777 nowhere"}},
		{"hard link to below", [][]tar.Header{{reg("a")}, {hard("b", "../a"), reg(".wh.a")}}, []string{`b 100644 "a" 1`}},
		{"hard link to itself", [][]tar.Header{{reg("a"), hard("a", "./a")}}, []string{`a 100644 "a" 1`}},
		{"whiteout of nothing", [][]tar.Header{{reg(".wh.a"), reg("b/.wh..wh..opq"), reg("c/d/.wh.e")}}, nil},
		{"whiteout and entry", [][]tar.Header{{reg("a"), reg("d/x")}, {reg(".wh.a"), reg("a"), reg(".wh.d"), reg("d/y")}}, []string{`a 100644 "a" 1`, "d 40755", `d/y 100644 "d/y" 1`}},
		{"entry and whiteout", [][]tar.Header{{reg("a"), reg("d/x")}, {reg("a"), reg(".wh.a"), reg("d/y"), reg(".wh.d")}}, []string{`a 100644 "a" 1`, "d 40755", `d/y 100644 "d/y" 1`}},
		{"opaque at last", [][]tar.Header{{reg("d/x"), reg("d/e/x")}, {reg("d/y"), reg("d/e/y"), reg("d/.wh..wh..opq")}}, []string{"d 40755", "d/e 40755", `d/e/y 100644 "d/e/y" 1`, `d/y 100644 "d/y" 1`}},
		{"opaque root", [][]tar.Header{{reg("a")}, {reg(".wh..wh..opq"), reg("b")}}, []string{`b 100644 "b" 1`}},
		{"AUFS", [][]tar.Header{{dir(".wh..wh.plnk"), reg(".wh..wh.plnk/1.2"), reg(".wh..wh.aufs")}}, nil},
		{"kept", [][]tar.Header{{reg("d/x")}, {dir("d")}}, []string{"d 40755", `d/x 100644 "d/x" 1`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, err := inMemory(t.Context(), build.Options{}, func(b *build.Builder) error {
				for i, l := range c.layers {
					b.Layer(fmt.Sprint(i))
					if err := b.AddTar(bytes.NewReader(archive(t, l...)), build.TarOptions{Whiteouts: true}); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			want := append([]string{". 40755"}, c.want...)
			if got := listing(t, image); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

// TestRefused: what no file system could have is an error that names layer and entry.
func TestRefused(t *testing.T) {
	long := strings.Repeat("n", 256)
	pax := func(name, key, value string) tar.Header {
		return tar.Header{Name: name, PAXRecords: map[string]string{key: value}}
	}
	loops := []tar.Header{}
	for i := range 50 {
		loops = append(loops, link(fmt.Sprint("l", i), fmt.Sprint("l", i+1)))
	}
	for _, c := range []struct {
		name   string
		limits build.Limits
		layer  []byte
		want   error
		words  string
	}{
		{"below a file", build.Limits{}, archive(t, reg("a"), reg("a/b")), build.ErrLayer, `entry "a/b"`},
		{"long name", build.Limits{}, archive(t, reg(long)), build.ErrLayer, "a name of 256 bytes"},
		{"long directory", build.Limits{}, archive(t, reg(long+"/x")), build.ErrLayer, "a name of 256 bytes"},
		{"deep", build.Limits{}, archive(t, reg(strings.Repeat("d/", 2100)+"x")), build.ErrLimit, "longer than 4095 bytes"},
		{"links in a circle", build.Limits{}, archive(t, link("a", "b"), link("b", "a"), reg("a/x")), build.ErrLayer, "more than 40 symbolic links"},
		{"many links", build.Limits{}, archive(t, append(loops, reg("l0/x"))...), build.ErrLayer, "more than 40 symbolic links"},
		{"hard link to nothing", build.Limits{}, archive(t, hard("a", "b")), build.ErrLayer, `hard link to "b", which is not there`},
		{"hard link to a directory", build.Limits{}, archive(t, dir("d"), hard("a", "d")), build.ErrLayer, `hard link to the directory "d"`},
		{"root is a file", build.Limits{}, archive(t, link(".", "x")), build.ErrLayer, "the root is not a directory"},
		{"whiteout of nothing", build.Limits{}, archive(t, reg("a/.wh.")), build.ErrLayer, "whiteout of no file"},
		{"whiteout upwards", build.Limits{}, archive(t, reg("a/.wh...")), build.ErrLayer, "whiteout of no file"},
		{"long attribute", build.Limits{}, archive(t, pax("a", "SCHILY.xattr.user."+long, "v")), build.ErrLayer, "an attribute with a name of 261"},
		{"large attribute", build.Limits{}, archive(t, pax("a", "SCHILY.xattr.user.x", strings.Repeat("v", 1<<16))), build.ErrLayer, "a value of 65536 bytes"},
		{"ACL", build.Limits{}, archive(t, pax("a", "SCHILY.xattr.system.posix_acl_access", "nonsense")), build.ErrLayer, "no access control list"},
		{"owner", build.Limits{}, archive(t, tar.Header{Name: "a", Uid: 1 << 33, Format: tar.FormatPAX}), build.ErrLayer, "an owner of 8589934592:0"},
		{"device", build.Limits{}, archive(t, tar.Header{Name: "a", Typeflag: tar.TypeChar, Devmajor: 1 << 13}), build.ErrLayer, "a device 8192:0"},
		{"type", build.Limits{}, archive(t, tar.Header{Name: "a", Typeflag: 'Z'}), build.ErrLayer, `unknown type 'Z'`},
		{"entries", build.Limits{Entries: 2}, archive(t, reg("a"), reg("b"), reg("c")), build.ErrLimit, "more than 2 entries"},
		{"implied entries", build.Limits{Entries: 2}, archive(t, reg("a/b/c")), build.ErrLimit, "more than 2 entries"},
		{"bytes", build.Limits{Bytes: 3}, archive(t, reg("ab"), reg("cd")), build.ErrLimit, "more than 3 bytes of files"},
		{"names", build.Limits{Metadata: 3}, archive(t, reg("ab"), reg("cd")), build.ErrLimit, "more than 3 bytes"},
		{"attributes", build.Limits{Metadata: 300}, archive(t, pax("a", "SCHILY.xattr.user.x", long), pax("b", "SCHILY.xattr.user.x", long+"2")), build.ErrLimit, "more than 300 bytes"},
		{"cut", build.Limits{}, archive(t, reg(strings.Repeat("ab/", 30)+"c"))[:600], build.ErrLayer, "ends in the middle"},
		{"noise", build.Limits{}, bytes.Repeat([]byte("noise"), 300), build.ErrLayer, "not a tar archive"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := inMemory(t.Context(), build.Options{Limits: c.limits}, func(b *build.Builder) error {
				b.Layer("first")
				return b.AddTar(bytes.NewReader(c.layer), build.TarOptions{Whiteouts: true})
			})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), "layer first") {
				t.Errorf("error %v, want %v with %q", err, c.want, c.words)
			}
		})
	}
}

// TestSlowPaths: an archive whose links cost more work than its size allows ends.
func TestSlowPaths(t *testing.T) {
	headers := []tar.Header{dir("d")}
	target := strings.Repeat("./", 2000)
	for i := range 39 {
		headers = append(headers, link(fmt.Sprint("l", i), target+fmt.Sprint("l", i+1)))
	}
	headers = append(headers, link("l39", "d"))
	for i := range 3000 {
		headers = append(headers, reg(fmt.Sprint("l0/", i)))
	}
	began := time.Now()
	_, err := inMemory(t.Context(), build.Options{}, func(b *build.Builder) error {
		b.Layer("slow")
		return b.AddTar(bytes.NewReader(archive(t, headers...)), build.TarOptions{})
	})
	if !errors.Is(err, build.ErrLimit) || !strings.Contains(err.Error(), "more work") {
		t.Errorf("error %v after %v", err, time.Since(began))
	}
}

// TestCancelled: a context that ended ends all.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := inMemory(ctx, build.Options{}, func(b *build.Builder) error {
		return b.AddTar(bytes.NewReader(archive(t, reg("a"))), build.TarOptions{})
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestReaderFails: what the reader says comes out, not that the archive is cut.
func TestReaderFails(t *testing.T) {
	broken := errors.New("broken cable")
	whole := archive(t, reg("a"), reg(strings.Repeat("b", 200)))
	for _, n := range []int{0, 100, 512, 514, 1100, 1700} {
		_, err := inMemory(t.Context(), build.Options{}, func(b *build.Builder) error {
			return b.AddTar(io.MultiReader(bytes.NewReader(whole[:n]), failing{broken}), build.TarOptions{})
		})
		if !errors.Is(err, broken) || errors.Is(err, build.ErrLayer) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// FuzzTar: any bytes are an image that reads back, or an error of the two classes.
func FuzzTar(f *testing.F) {
	all := archives(f)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if p := all[name]; len(p) < 1<<20 {
			f.Add(p)
		}
	}
	f.Add(archive(f, dir("d"), link("l", "d"), reg("l/x"), hard("h", "d/x"), reg("d/.wh.x"), reg(".wh..wh..opq")))
	f.Fuzz(func(t *testing.T, p []byte) {
		limits := build.Limits{Entries: 1000, Bytes: 1 << 20, Metadata: 1 << 20}
		image, err := inMemory(t.Context(), build.Options{Limits: limits}, func(b *build.Builder) error {
			for i := range 2 { // over itself
				b.Layer(fmt.Sprint(i))
				if err := b.AddTar(bytes.NewReader(p), build.TarOptions{Whiteouts: true}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			if !errors.Is(err, build.ErrLayer) && !errors.Is(err, build.ErrLimit) {
				t.Fatalf("%v is of no class", err)
			}
			return
		}
		im, err := erofs.Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		stats, err := erofs.Verify(t.Context(), im, func(path string, finding error) { t.Errorf("%s: %v", path, finding) })
		if err != nil || stats.Findings > 0 {
			t.Fatalf("%+v, %v", stats, err)
		}
	})
}

// FuzzDecompress: any bytes are read to an end or an error of the class.
func FuzzDecompress(f *testing.F) {
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x00, 0x09, 0, 0, 'a'})
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := build.Decompress(bytes.NewReader(p))
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			_ = r.Close()
		}
		if err != nil && !errors.Is(err, build.ErrLayer) {
			t.Fatalf("%v is of no class", err)
		}
	})
}

// FuzzImage: any EROFS image is a layer, or an error.
func FuzzImage(f *testing.F) {
	seed, err := inMemory(f.Context(), build.Options{}, func(b *build.Builder) error {
		return b.AddTar(bytes.NewReader(archive(f, dir("d"), link("l", "d"), reg("d/x"), hard("h", "d/x"))), build.TarOptions{})
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, p []byte) {
		limits := build.Limits{Entries: 1000, Bytes: 1 << 20, Metadata: 1 << 20}
		_, err := inMemory(t.Context(), build.Options{Limits: limits}, func(b *build.Builder) error {
			for i := range 2 {
				b.Layer(fmt.Sprint(i))
				if err := b.AddImage(bytes.NewReader(p), int64(len(p))); err != nil {
					return err
				}
			}
			return nil
		})
		for _, class := range []error{nil, build.ErrLayer, build.ErrLimit, erofs.ErrFormat, erofs.ErrUnsupported, erofs.ErrCorrupt} {
			if errors.Is(err, class) {
				return
			}
		}
		t.Fatalf("%v is of no class", err)
	})
}
