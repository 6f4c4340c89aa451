package erofs_test

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/test/images"
)

var (
	allTrees = flag.Bool("matrix", false, "make TestMatrix's images of every tree, not of one in turn")
	keepDir  = flag.String("keep", "", "keep the images of TestMatrix in this directory")
	imageDir = flag.String("images", "", "compare the images in this directory, made before under another kernel")
)

// The matrix of compressed images: every codec with every set of extended
// options, levels and cluster sizes taking turns, and the trees too unless -matrix
// is given, each compared with the kernel's mount.
//
// Linux 6.18 can't read some unaligned pclusters, which the 48bit and metabox
// options make; the contents of those files are compared with the source's.
var (
	matrixCodecs = []matrixCodec{
		{"LZ4", [2]int{}, []string{"lz4"}},
		{"LZ4", [2]int{}, []string{"lz4hc", "lz4hc,12", "lz4hc,1"}},
		{"LZMA", [2]int{1, 8}, []string{"lzma,level=3", "lzma,level=0", "lzma,level=1,dictsize=32768", "lzma,level=103", "lzma,level=2,lc=0,lp=2,pb=4"}},
		{"DEFLATE", [2]int{1, 8}, []string{"deflate", "deflate,level=9", "deflate,level=5,dictsize=4096"}},
		{"DEFLATE", [2]int{1, 8}, []string{"libdeflate", "libdeflate,level=6"}},
		{"Zstandard", [2]int{1, 8}, []string{"zstd", "zstd,level=1", "zstd,level=9", "zstd,level=5,dictsize=1048576"}},
	}
	matrixClusters = []string{"4096", "65536", "16384", "1048576", "262144"}
	matrixOptions  = []matrixOption{
		{opts: "", some: "compact initial packed trailing big"},
		{opts: "-Eztailpacking", some: "inline"},
		{opts: "-Efragments", since: [2]int{1, 8}, some: "fragment whole-fragment interlaced"},
		{opts: "-Eall-fragments", since: [2]int{1, 8}, some: "whole-fragment"},
		{opts: "-Eall-fragments,fragdedupe=full", since: [2]int{1, 9}},
		{opts: "-Eall-fragments=4096,fragdedupe=inode", since: [2]int{1, 9}},
		{opts: "-Ededupe", since: [2]int{1, 8}, some: "partial full"},
		{opts: "-Ededupe,fragments", since: [2]int{1, 8}, some: "partial fragment"},
		{opts: "-Efragments,ztailpacking,^fragdedupe", since: [2]int{1, 9}},
		{opts: "-Elegacy-compress", some: "full"},
		{opts: "-Elegacy-compress,ztailpacking", some: "full inline"},
		{opts: "-Elegacy-compress,all-fragments", since: [2]int{1, 8}, some: "full"},
		{opts: "-E48bit", since: [2]int{1, 9}, some: "encoded-16 unaligned"},
		{opts: "-E48bit,fragments", since: [2]int{1, 9}, some: "fragment"},
		{opts: "-E48bit,dedupe", since: [2]int{1, 9}, some: "encoded-16 partial"},
		{opts: "-E48bit,all-fragments,dedupe", since: [2]int{1, 9}},
		{opts: "-E48bit,ztailpacking", since: [2]int{1, 9}},
		{opts: "-Eforce-inode-extended"},
		{opts: "-Eforce-inode-compact --all-root"},
		{opts: "-Edot-omitted", since: [2]int{1, 9}},
		{opts: "--zD", since: [2]int{1, 9}},
		{opts: "-m4096", since: [2]int{1, 9}},
		{opts: "-m8192 -b2048 -Efragments,dedupe,^inline_data", since: [2]int{1, 9}, cluster: "32768"},
		// mkfs.erofs 1.9.4 writes indexes that fsck.erofs refuses, with larger clusters.
		{opts: "--max-extent-bytes=8192", cluster: "4096", some: "compact"},
		// Linux mounts no more than 256 blocks, and mkfs.erofs loses the size of 2048.
		{opts: "-b512", since: [2]int{1, 8}, cluster: "65536"},
		{opts: "-b1024 -Eztailpacking", since: [2]int{1, 8}, cluster: "16384", some: "inline"},
	}
)

type matrixCodec struct {
	name   string // as in ZCounts
	since  [2]int
	levels []string
}

type matrixOption struct {
	opts    string
	since   [2]int
	cluster string // the only size of clusters; empty: they take turns
	some    string // ways to store data that must occur in some image with these options
}

// image builds and compares one image, with the n-th of the levels and sizes.
func (o matrixOption) image(t *testing.T, mkfs images.Mkfs, codec matrixCodec, n int, tree matrixTree) (counts erofs.ZCounts) {
	opts := append(strings.Fields(o.opts), "-z"+codec.levels[n%len(codec.levels)],
		"-C"+cmp.Or(o.cluster, matrixClusters[n%len(matrixClusters)]))
	t.Run(tree.name+" "+strings.Join(opts, " "), func(t *testing.T) {
		if strings.Contains(o.opts, "dedupe") {
			opts = append(opts, "--exclude-regex=^(big/(zero|mixed)|sparse)") // takes minutes
		}
		c := kernelCase{opts: opts, counts: []string{codec.name}, instead: images.Dir(tree.dir)}
		counts = c.run(t, builder{mkfs: mkfs, opts: opts, tree: tree.dir}, 6).counts
	})
	return counts
}

type matrixTree struct{ name, dir string }

func matrixTrees(t *testing.T) []matrixTree {
	return []matrixTree{{"debian", images.DebianTree(t)}, {"module", images.ModuleTree(t)}, {"binaries", images.BinaryTree(t)}}
}

func TestMatrix(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	trees := matrixTrees(t)
	for o, option := range matrixOptions {
		if !mkfs.AtLeast(option.since[0], option.since[1]) {
			continue
		}
		t.Run(strings.TrimSpace("options "+option.opts), func(t *testing.T) {
			t.Parallel()
			sum := make(erofs.ZCounts)
			for i, codec := range matrixCodecs {
				if !mkfs.AtLeast(codec.since[0], codec.since[1]) {
					continue
				}
				for k, tree := range trees {
					if n := o*len(matrixCodecs) + i; *allTrees || k == (n+i)%len(trees) {
						for name, count := range option.image(t, mkfs, codec, n+k, tree) {
							sum[name] += count
						}
					}
				}
			}
			t.Logf("%v", sum)
			for name := range strings.FieldsSeq(option.some) {
				if sum[name] == 0 && !t.Failed() {
					t.Errorf("%q never occurred: %v", name, sum)
				}
			}
		})
	}
}

// keep copies an image into the directory of -keep, by the test's name.
func keep(t *testing.T, path string) {
	t.Helper()
	if *keepDir == "" {
		return
	}
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' {
			return '_'
		}
		return r
	}, t.Name())
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(*keepDir, name+".erofs"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestImages compares the images in the directory of -images with the kernel's
// mounts of them. It is for kernels under which mkfs.erofs would take too long.
func TestImages(t *testing.T) {
	if *imageDir == "" {
		return
	}
	paths, err := filepath.Glob(filepath.Join(*imageDir, "*.erofs"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no images in %s: %v", *imageDir, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			mounted := images.KernelMount(t, path)
			images.Compare(t, images.Dir(mounted), imageTree{openFile(t, path)}, images.CompareOptions{Reads: 3, Numbers: true})
		})
	}
}

// Images with several algorithms, and other things that happen once.
func TestMatrixOdd(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return // has none of these options
	}
	tree := images.DebianTree(t)
	for _, c := range []kernelCase{
		{name: "hints", build: compressHints, opts: []string{"-zlzma,level=1"}, counts: []string{"LZMA", "big"}},
		{name: "two-algorithms", opts: []string{"-zlz4:zstd,level=9", "-C65536", "-m16384:zstd"}, counts: []string{"LZ4"}, has: []string{"metabox"}},
		{name: "long-prefixes-packed", opts: []string{"-zlz4", "-Efragments", "--xattr-prefix=user.project."}, has: []string{"xattr_prefixes", "fragments"}},
		{name: "long-prefixes-metabox", opts: []string{"-zlz4", "-m4096", "--xattr-prefix=user.project."}, has: []string{"xattr_prefixes", "metabox"}},
		{name: "plain-prefixes", opts: []string{"-zzstd", "-m4096", "-Efragments,plain-xattr-prefixes", "--xattr-prefix=user.project."}, has: []string{"plain_xattr_pfx", "metabox"}},
		{name: "shared-xattrs-metabox", opts: []string{"-zlz4", "-m4096", "-x0"}, has: []string{"metabox"}},
		{name: "xattr-filter", opts: []string{"-zlz4", "-Exattr-name-filter", "--xattr-prefix=user.project."}, has: []string{"xattr_filter"}},
		{name: "fingerprints-packed", opts: []string{"-zzstd", "-Eall-fragments", "--xattr-inode-digest"}, has: []string{"ishare_xattrs"}},
		{name: "fingerprints-metabox", opts: []string{"-zzstd", "-m4096", "--xattr-inode-digest=trusted.digest"}, has: []string{"ishare_xattrs", "metabox"}},
		{name: "metabox-plain", opts: []string{"-m8192", "-Enoinline_data"}, has: []string{"metabox"}},
		{name: "metabox-48bit-dot-omitted", opts: []string{"-zlzma", "-m4096", "-Edot-omitted"}, has: []string{"metabox", "48bit"}},
		{name: "48bit-chunks", opts: []string{"-E48bit,force-chunk-indexes", "--chunksize=4096"}, has: []string{"48bit", "chunked_file"}},
		{name: "48bit-device", opts: []string{"-E48bit"}, build: blobDevice, has: []string{"48bit", "device_table"}},
		{name: "compressed-directories", opts: []string{"-zzstd", "--zD", "-C65536"}},
		{name: "metadata-zone", opts: []string{"-zlz4", "--MZ=id", "-Efragments"}},
		{name: "tar", build: tarFull, opts: []string{"-zlz4hc"}, counts: []string{"LZ4"}},
		{name: "tar-48bit", build: tarFull, opts: []string{"-zzstd", "-E48bit,dedupe"}, counts: []string{"Zstandard"}},
		{name: "tar-index", build: tarIndex},
		{name: "fixed-time", opts: []string{"-zlz4", "-T1", "--all-time", "-m4096"}},
		{name: "before-1970", opts: []string{"-zlz4", "-T-5000000000", "--all-time"}},
		{name: "preserve-mtime", opts: []string{"-zlz4", "--preserve-mtime", "-T1700000000", "--mkfs-time"}},
		{name: "shifted-ids", opts: []string{"-zlz4", "--uid-offset=3000000000", "--gid-offset=100000"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.instead = images.Dir(tree)
			c.run(t, builder{mkfs: mkfs, opts: c.opts, tree: tree}, 6)
		})
	}
}

// A directory of 100,000 entries and a file of more than 4 GiB.
func TestMatrixHuge(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	tree := images.HugeTree(t)
	for _, c := range []kernelCase{
		{name: "chunked", opts: []string{"--chunksize=1048576"}},
		{name: "lz4", opts: []string{"-zlz4", "-C65536", "--max-extent-bytes=1048576"}, counts: []string{"LZ4", "compact"}},
		{name: "lz4-48bit", since: [2]int{1, 9}, opts: []string{"-zlz4", "-E48bit", "-C65536", "--max-extent-bytes=1000000"}, counts: []string{"LZ4", "encoded-32"}},
		{name: "zstd-48bit-metabox", since: [2]int{1, 9}, opts: []string{"-zzstd,level=1", "-C65536", "-E48bit", "-m4096", "--zD"}, counts: []string{"Zstandard", "encoded-4"}},
	} {
		if !mkfs.AtLeast(c.since[0], c.since[1]) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			c.instead = images.Dir(tree)
			if n := c.run(t, builder{mkfs: mkfs, opts: c.opts, tree: tree}, 1).files; n < 100_000 {
				t.Errorf("only %d files", n)
			}
		})
	}
}

// Attributes that an inode has not are found out by the Bloom filter of names.
func TestXattrFilter(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 7) {
		return // writes no filter
	}
	im := openFile(t, images.Build(t, mkfs, []string{"-Exattr-name-filter"}, images.SmallTree(t)))
	lookedFor, found := 0, 0
	for i := range 12 {
		in, err := imageTree{im}.inode(fmt.Sprintf("xattrs/shared-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		list, err := in.Xattrs()
		if err != nil || len(list) < 4 {
			t.Fatalf("%d attributes: %v", len(list), err)
		}
		for _, x := range list {
			if absent, err := in.Lacks(x.Name); err != nil || absent {
				t.Errorf("%s is there, but the filter says %t, %v", x.Name, absent, err)
			}
		}
		for k := range 100 {
			lookedFor++
			if absent, err := in.Lacks(fmt.Sprintf("user.none-%d", k)); err != nil {
				t.Fatal(err)
			} else if absent {
				found++
			}
		}
	}
	// Four names set at most four of 32 bits.
	if found < lookedFor*26/32 {
		t.Errorf("the filter excludes %d of %d names that are not there", found, lookedFor)
	}
}

// compressHints compresses files in clusters by their names. With an algorithm
// by name mkfs.erofs 1.9.4 crashes.
func compressHints(t *testing.T, b builder) []string {
	t.Helper()
	hints := writeFile(t, "65536 ^sizes/.*\n262144 ^(big|debian/usr/bin)/.*\n0 ^owners/.*\n4096 .*\n")
	opts := append(slices.Clone(b.opts), "-C1048576", "--compress-hints="+hints)
	return []string{images.Build(t, b.mkfs, opts, b.tree)}
}

// tarFull makes an image from a tarball.
func tarFull(t *testing.T, b builder) []string {
	t.Helper()
	return tarImage(t, b, "--tar=f")[:1]
}
