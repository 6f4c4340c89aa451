package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

func TestParseImage(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"image", "host.example/app:v1", "dev", "a,b"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		arg, ref string // ref "": an error
		path     bool
	}{
		{"image", dir + "/image", true},
		{"./image", dir + "/image", true},
		{dir + "/image", dir + "/image", true},
		{"file://" + dir + "/image", dir + "/image", true},
		{"image,device=dev", dir + "/image,device=" + dir + "/dev", true},
		{"a,b", dir + "/a,b", true},
		{"host.example/app:v1", dir + "/host.example/app:v1", true}, // a file before a reference
		{"host.example/app:v2", "host.example/app:v2", false},
		{"host:5000/app", "host:5000/app", false},
		{"localhost/app@sha256:" + hex64, "localhost/app@sha256:" + hex64, false},
		{"oci://host/app", "oci://host/app", false},
		{"", "", false},
		{"missing", "", false},
		{"images/missing", "", false},
		{"../missing.example/app", "", false},
		{"/missing", "", false},
		{"image,device=missing", "", false},
		{".", "", false},
		{"/dev/null", "", false}, // a device, but of characters
		{"https://host.example/image", "", false},
		{"host.example/UPPER", "", false},
	} {
		got, err := parseImage(c.arg)
		if c.ref == "" {
			if err == nil {
				t.Errorf("%q: want an error, got %+v", c.arg, got)
			}
			continue
		}
		if err != nil || got != (imageArg{ref: c.ref, path: c.path}) {
			t.Errorf("%q: got %+v, %v; want %q, path %v", c.arg, got, err, c.ref, c.path)
		}
	}
	if _, err := parseImage("host.example/UPPER"); !errors.Is(err, nodecache.ErrInvalidReference) {
		t.Errorf("a malformed reference: %v", err)
	}
}

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestText(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB",
		5 << 30: "5.0 GiB", 1<<64 - 1: "16.0 EiB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
	for s, want := range map[string]string{
		"plain/ünï": "plain/ünï", "two\nlines": `"two\nlines"`, "\x1b[31m": `"\x1b[31m"`, "\xff": `"\xff"`, "": "",
	} {
		if got := printable(s); got != want {
			t.Errorf("printable(%q) = %q, want %q", s, got, want)
		}
	}
	if got := oneLine("one\n two\r\n"); got != "one; two" {
		t.Errorf("oneLine = %q", got)
	}
}
