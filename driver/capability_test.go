package driver

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

func TestAccessModes(t *testing.T) {
	for number, name := range csi.VolumeCapability_AccessMode_Mode_name {
		mode := csi.VolumeCapability_AccessMode_Mode(number)
		reads := mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY ||
			mode == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
		_, err := checkCapability(capability(mode), false)
		if reads != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (!errors.Is(err, errInvalid) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "ReadOnlyMany")) {
			t.Errorf("%s: error %q must name the mode and the fix", name, err)
		}
		if _, err := checkCapability(capability(mode), true); err != nil {
			t.Errorf("%s for an inline volume: %v", name, err)
		}
	}
}

func TestCapabilityRefusals(t *testing.T) {
	mount := func(edit func(*csi.VolumeCapability_MountVolume)) *csi.VolumeCapability {
		c := reader()
		edit(c.GetMount())
		return c
	}
	block := reader()
	block.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	noType := reader()
	noType.AccessType = nil
	tests := []struct {
		name string
		c    *csi.VolumeCapability
		word string
	}{
		{"none", nil, "missing"},
		{"block", block, "volumeMode: Filesystem"},
		{"no access type", noType, "access type"},
		{"ext4", mount(func(m *csi.VolumeCapability_MountVolume) { m.FsType = "ext4" }), `"ext4"`},
		{"mount group", mount(func(m *csi.VolumeCapability_MountVolume) { m.VolumeMountGroup = "1000" }), "fsGroupPolicy"},
	}
	for _, test := range tests {
		for _, ephemeral := range []bool{false, true} {
			_, err := checkCapability(test.c, ephemeral)
			if !errors.Is(err, errInvalid) || !strings.Contains(err.Error(), test.word) {
				t.Errorf("%s: %v, want errInvalid that says %q", test.name, err, test.word)
			}
		}
	}
	for _, fs := range []string{"", "erofs"} {
		if _, err := checkCapability(mount(func(m *csi.VolumeCapability_MountVolume) { m.FsType = fs }), false); err != nil {
			t.Errorf("file system type %q: %v", fs, err)
		}
	}
}

func TestMountFlags(t *testing.T) {
	tests := []struct {
		in   []string
		want string // names, or the beginning of an error after !
	}{
		{nil, "ro,nodev"},
		{[]string{"ro"}, "ro,nodev"},
		{[]string{"exec", "suid", "defaults"}, "ro,nodev"},
		{[]string{"noexec", "nosuid", "nodev", "noatime", "nodiratime", "nosymfollow"}, "ro,nodev,nosuid,noexec,nosymfollow,noatime,nodiratime"},
		{[]string{"relatime"}, "ro,nodev,relatime"},
		{[]string{"strictatime"}, "ro,nodev,strictatime"},
		{[]string{"rw"}, `!mount option "rw"`},
		{[]string{"dev"}, `!mount option "dev"`},
		{[]string{""}, `!mount option ""`},
		{[]string{"ro,nosuid"}, `!mount option "ro,nosuid"`},
		{[]string{"uid=0"}, `!mount option "uid=0"`},
		{[]string{"noatime", "relatime"}, "!mount options ro,nodev,noatime,relatime"},
	}
	for _, test := range tests {
		got, err := parseMountFlags(test.in)
		if prefix, bad := strings.CutPrefix(test.want, "!"); bad {
			if !errors.Is(err, errInvalid) || !strings.HasPrefix(err.Error(), prefix) {
				t.Errorf("%q: %v, want %s", test.in, err, prefix)
			}
			continue
		}
		if err != nil || got.String() != test.want {
			t.Errorf("%q: %s, %v; want %s", test.in, got, err, test.want)
		}
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		var back mountFlags
		if err := json.Unmarshal(b, &back); err != nil || back != got {
			t.Errorf("%s came back as %s, %v", b, back, err)
		}
	}
}

func TestMountFlagsInMountinfo(t *testing.T) {
	tests := []struct {
		flags, options string
		want           bool
	}{
		{"", "ro,nodev,relatime", true},
		{"", "ro,nosuid,nodev,relatime", true},
		{"", "rw,nodev,relatime", false},
		{"", "ro,relatime", false},
		{"noexec", "ro,nodev,relatime", false},
		{"strictatime", "ro,nodev", true},
		{"strictatime", "ro,nodev,relatime", false},
	}
	for _, test := range tests {
		var in []string
		if test.flags != "" {
			in = strings.Split(test.flags, ",")
		}
		flags, err := parseMountFlags(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := flags.in(strings.Split(test.options, ",")); got != test.want {
			t.Errorf("%s in %s: %t, want %t", flags, test.options, got, test.want)
		}
	}
}
