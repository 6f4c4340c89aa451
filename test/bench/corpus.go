package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kind is how an image of a tree is made.
type kind struct {
	name, suffix string
	opts         []string
}

// kinds are the images made of one tree, in the order of their cost to read.
var kinds = []kind{
	{"plain", "plain", nil},
	{"LZ4HC", "lz4hc", []string{"-zlz4hc"}},
	{"Zstandard", "zstd", []string{"-zzstd"}},
}

// The indices of kinds.
const (
	plain = iota
	lz4hc
	zstd
)

// kindred are images of one tree, by kind; nil where mkfs.erofs can't make one.
type kindred [3]*image

// pair is two versions of one image.
type pair struct {
	name     string
	versions [2]kindred
	tree     string // of the first version; empty when there are images only
}

// kind returns both versions as images of some kinds, nil when one lacks.
func (p *pair) kind(first, second int) []*image {
	a, b := p.versions[0][first], p.versions[1][second]
	if a == nil || b == nil {
		return nil
	}
	return []*image{a, b}
}

// makeKindred builds the images of a tree, below dir, as NAME.KIND.erofs. Those that
// are there are taken as they are. want are the tree's contents.
func (b *bench) makeKindred(ctx context.Context, dir, name, tree string, want contents, which ...int) (k kindred, err error) {
	for _, i := range which {
		path := filepath.Join(dir, name+"."+kinds[i].suffix+".erofs")
		if _, err := os.Stat(path); err != nil {
			if tree == "" {
				progress("left out: %s is not there", filepath.Base(path))
				continue
			}
			progress("building the image of %s, %s", name, kinds[i].name)
			if err := mkfs(ctx, path, tree, append(fingerprints(ctx), kinds[i].opts...)...); err != nil {
				if i == plain {
					return k, err
				}
				progress("left out: %v", err)
				continue
			}
		}
		if k[i], err = existingImage(name+", "+kinds[i].name, path, want); err != nil {
			return k, err
		}
	}
	return k, nil
}

// fingerprints are the options by which mkfs.erofs, from 1.9 on, puts the digest of
// each file into the image, which the kernel's sharing goes by.
func fingerprints(ctx context.Context) []string {
	const option = "--xattr-inode-digest"
	help, _ := exec.CommandContext(ctx, mkfsPath(), "--help").CombinedOutput()
	if strings.Contains(string(help), option) {
		return []string{option}
	}
	return nil
}

// corpusNames lists the pairs that were asked for: NAME-A and NAME-B below -pairs,
// or images of both in -images.
func (o *options) corpusNames() (names []string, err error) {
	dir, suffix := o.pairs, ""
	if dir == "" {
		dir, suffix = o.images, "."+kinds[plain].suffix+".erofs"
	}
	found, err := filepath.Glob(filepath.Join(dir, "*-A"+suffix))
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		name := strings.TrimSuffix(filepath.Base(path), "-A"+suffix)
		if len(o.names) > 0 && !slices.Contains(o.names, name) {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, name+"-B"+suffix)); err == nil {
			names = append(names, name)
		}
	}
	for _, name := range o.names {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("%s holds no pair %s-A and %s-B", dir, name, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s holds no pair NAME-A and NAME-B", dir)
	}
	return names, nil
}

// makePairs builds the images of the pairs, the smallest first; of the wanted kinds.
func (b *bench) makePairs(ctx context.Context, which ...int) error {
	if b.pairs == "" && b.images == "" {
		trees, err := b.chooseTrees(ctx)
		if err != nil {
			return err
		}
		return b.makePair(ctx, b.work, "pair", trees, which)
	}
	names, err := b.corpusNames()
	if err != nil {
		return err
	}
	dir := cmp.Or(b.images, b.work)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range names {
		var trees [2]string
		if b.pairs != "" {
			trees = [2]string{filepath.Join(b.pairs, name+"-A"), filepath.Join(b.pairs, name+"-B")}
		}
		if err := b.makePair(ctx, dir, name, trees, which); err != nil {
			return err
		}
	}
	slices.SortFunc(b.corpus, func(x, y *pair) int {
		return cmp.Compare(x.versions[0][plain].size, y.versions[0][plain].size)
	})
	return nil
}

func (b *bench) makePair(ctx context.Context, dir, name string, trees [2]string, which []int) error {
	p := &pair{name: name, tree: trees[0]}
	for i, tree := range trees {
		version := name + []string{"-A", "-B"}[i]
		want, err := listed(ctx, filepath.Join(dir, version+".json"), tree)
		if err != nil {
			return err
		}
		if p.versions[i], err = b.makeKindred(ctx, dir, version, tree, want, which...); err != nil {
			return err
		}
		if p.versions[i][plain] == nil {
			return fmt.Errorf("the plain image of %s is missing", version)
		}
	}
	b.corpus = append(b.corpus, p)
	return nil
}

// listing is a content in a file beside an image.
type listing struct {
	Sum  string `json:"sum"`
	Size int64  `json:"size"`
	Ino  uint64 `json:"ino"`
}

// listed reads the contents of a tree from the file that an earlier run wrote, else
// scans the tree and writes it.
func listed(ctx context.Context, path, tree string) (contents, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && tree != "" {
		c, err := scan(ctx, tree)
		if err != nil {
			return nil, err
		}
		return c, c.write(path)
	}
	if err != nil {
		return nil, err
	}
	var list map[string]listing
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c := make(contents, len(list))
	for name, l := range list {
		one := content{size: l.Size, ino: l.Ino}
		sum, err := hex.DecodeString(l.Sum)
		if err != nil || copy(one.sum[:], sum) != len(one.sum) {
			return nil, fmt.Errorf("%s: %s has no SHA-256", path, name)
		}
		c[name] = one
	}
	return c, nil
}

func (c contents) write(path string) error {
	list := make(map[string]listing, len(c))
	for name, one := range c {
		list[name] = listing{hex.EncodeToString(one.sum[:]), one.size, one.ino}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
