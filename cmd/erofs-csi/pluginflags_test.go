package main

import (
	"strings"
	"testing"
)

// What a command line of /proc tells, also of a release with other flags.
func TestParsedCommand(t *testing.T) {
	for line, want := range map[string]string{
		"/erofs-csi node --plain-http=a --plain-http=b --max-splines=25 -v=2": "node [a,b]",
		"erofs-csi node --plain-http a --registry-config /f --not-yet":        "node [a]",
		"/usr/bin/erofs-csi mount --domain x a.erofs /mnt":                    "mount []",
		"/erofs-csi":                    "erofs-csi ",
		"/erofs-csi bogus":              "erofs-csi ",
		"/erofs-csi node --front=magic": "",
		"/sbin/init":                    "",
		"":                              "",
	} {
		got := ""
		if cmd := parsedCommand([]byte(strings.ReplaceAll(line, " ", "\x00") + "\x00")); cmd != nil {
			got = cmd.Name() + " "
			if f := cmd.Flag("plain-http"); f != nil {
				got += f.Value.String()
			}
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
