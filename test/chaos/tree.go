package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// entry is what an image must show of a file.
type entry struct {
	Mode   uint32            `json:"mode"`
	UID    uint32            `json:"uid"`
	Size   int64             `json:"size"`
	Mtime  int64             `json:"mtime"` // ns
	Sum    string            `json:"sum,omitempty"`
	Link   string            `json:"link,omitempty"`
	Xattrs map[string]string `json:"xattrs,omitempty"`
	Names  []string          `json:"names,omitempty"` // of a directory, sorted
}

// truth is a tree as it was before an image was made of it, by path; "" is the root.
type truth struct {
	Source string            `json:"source"` // the tree itself
	Exec   []string          `json:"exec"`   // paths of programs that print execSays
	Files  map[string]*entry `json:"files"`
}

const execSays = "as it was built"

// program is a static program, padded so that it takes many page faults to load.
const program = `package main

import "os"

func main() { os.Stdout.WriteString("` + execSays + `") }
`

// buildProgram compiles the program that images have.
func buildProgram(dir string) (string, error) {
	source, out := filepath.Join(dir, "program.go"), filepath.Join(dir, "program")
	if err := os.WriteFile(source, []byte(program), 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build a program for images: %w: %s", err, text)
	}
	return out, nil
}

// treeKind says what a tree has.
type treeKind struct {
	seed  uint64
	files int
	most  int // bytes of a file
	big   int // bytes of one more file that does not compress
	marks bool
}

// writeTree makes a tree. Every other file is the same in all trees, but for its
// directory and its time.
func writeTree(root, prog string, k treeKind) error {
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	write := func(name string, data []byte, mode os.FileMode) {
		path := filepath.Join(root, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, data, mode))
	}
	for i := range k.files {
		seed := k.seed
		if i%2 == 0 {
			seed = 0
		}
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		size := r.IntN(k.most)
		if i%3 > 0 {
			size /= 16
		}
		write(fmt.Sprintf("d%d/e%d/f%03d", i%5, i%3, i), someText(r, size), 0o644)
	}
	r := rand.New(rand.NewPCG(k.seed, 1<<40))
	if k.big > 0 {
		data := make([]byte, k.big)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		write("big", data, 0o600)
	}
	code, err := os.ReadFile(prog)
	check(err)
	write("bin/program", code, 0o755)
	write("bin/alone", append(code, fmt.Sprint(k.seed)...), 0o755) // no other image has this content
	write("empty", nil, 0o644)
	for i := range 10 {
		check(os.Symlink(fmt.Sprintf("../d%d/e%d/f%03d", i%5, i%3, i), filepath.Join(root, "bin", fmt.Sprintf("link%d", i))))
		name := filepath.Join(root, fmt.Sprintf("d%d/e%d/f%03d", i%5, i%3, i))
		check(unix.Lsetxattr(name, "user.number", fmt.Appendf(nil, "%d of %d", i, k.seed), 0))
	}
	if k.marks {
		write("marks/file", []byte("no redirect"), 0o644)
		check(unix.Lsetxattr(filepath.Join(root, "marks/file"), "trusted.overlay.redirect", []byte("/elsewhere"), 0))
	}
	for i := range 400 { // a directory of several blocks
		write(fmt.Sprintf("many/a-name-that-takes-some-room-%04d", i), nil, 0o644)
	}
	var paths []string
	check(filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	for i, path := range slices.Backward(paths) {
		ts := unix.NsecToTimespec(time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC).UnixNano() + int64(k.seed)<<32 + int64(i))
		check(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return errors.Join(errs...)
}

// someText compresses to about a half.
func someText(r *rand.Rand, n int) []byte {
	var out bytes.Buffer
	for out.Len() < n {
		if r.IntN(3) == 0 {
			out.WriteString(" the same words again and again ")
		}
		fmt.Fprintf(&out, "%x", r.Uint64())
	}
	return out.Bytes()[:n]
}

// scan is the truth of a tree.
func scan(root string) (*truth, error) {
	t := &truth{Source: root, Files: make(map[string]*entry)}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		e, err := look(path)
		if err != nil {
			return err
		}
		switch {
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			e.Sum = sumOf(data)
			e.Xattrs = make(map[string]string)
			value := make([]byte, 256)
			for _, attr := range []string{"user.number"} {
				if n, err := unix.Lgetxattr(path, attr, value); err == nil {
					e.Xattrs[attr] = string(value[:n])
				}
			}
		case d.Type() == fs.ModeSymlink:
			if e.Link, err = os.Readlink(path); err != nil {
				return err
			}
		case d.IsDir():
			list, err := os.ReadDir(path)
			if err != nil {
				return err
			}
			for _, in := range list {
				e.Names = append(e.Names, in.Name())
			}
		}
		t.Files[name] = e
		return nil
	})
	t.Exec = []string{"bin/program", "bin/alone"}
	return t, err
}

// look is stat's part of an entry.
func look(path string) (*entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	e := &entry{Mode: st.Mode, UID: st.Uid, Mtime: st.Mtim.Nano()}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		e.Size = st.Size
	}
	return e, nil
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (t *truth) write(path string) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func readTruth(path string) (*truth, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := new(truth)
	return t, json.Unmarshal(data, t)
}
