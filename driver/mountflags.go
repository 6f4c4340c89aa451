package driver

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountFlags are the per-mount flags of a bind mount, MS_* bits. Every mount
// of this driver has MS_RDONLY and MS_NODEV: a device node of an image would
// open the host's device. MS_NOSUID is not a default, since an image may be
// the root of a container whose programs need their set-user-ID bits; kubelet
// and the runtime decide that for the pod, mountOptions for the volume.
type mountFlags uintptr

const defaultMountFlags mountFlags = unix.MS_RDONLY | unix.MS_NODEV

// atimeFlags exclude one another.
const atimeFlags mountFlags = unix.MS_NOATIME | unix.MS_RELATIME | unix.MS_STRICTATIME

// mountOptions are the options that mount_flags may name, in the order of
// their printing. Zero bits: accepted, already so.
var mountOptions = []struct {
	name string
	bits mountFlags
}{
	{"ro", unix.MS_RDONLY},
	{"nodev", unix.MS_NODEV},
	{"nosuid", unix.MS_NOSUID},
	{"noexec", unix.MS_NOEXEC},
	{"nosymfollow", unix.MS_NOSYMFOLLOW},
	{"noatime", unix.MS_NOATIME},
	{"nodiratime", unix.MS_NODIRATIME},
	{"relatime", unix.MS_RELATIME},
	{"strictatime", unix.MS_STRICTATIME},
	{"suid", 0},
	{"exec", 0},
	{"defaults", 0},
}

// parseMountFlags checks mount_flags (a PersistentVolume's or StorageClass's
// mountOptions). They are flags of the mount, not of a file system driver, so
// only the kernel's generic ones are known.
func parseMountFlags(options []string) (mountFlags, error) {
	flags := defaultMountFlags
	for _, option := range options {
		switch option {
		case "rw":
			return 0, refuse(errInvalid, "mount option \"rw\": volumes of this driver are read-only; remove it from mountOptions")
		case "dev":
			return 0, refuse(errInvalid, "mount option \"dev\": devices of an image are never usable; remove it from mountOptions")
		}
		i := slices.IndexFunc(mountOptions, func(o struct {
			name string
			bits mountFlags
		},
		) bool {
			return o.name == option
		})
		if i < 0 {
			var known []string
			for _, o := range mountOptions {
				known = append(known, o.name)
			}
			return 0, refuse(errInvalid, "mount option %q is not supported: the known ones are %s", option, strings.Join(known, ", "))
		}
		flags |= mountOptions[i].bits
	}
	if atime := flags & atimeFlags; atime&(atime-1) != 0 {
		return 0, refuse(errInvalid, "mount options %s: name at most one of noatime, relatime and strictatime", flags)
	}
	return flags, nil
}

// attributes are the flags as mount_setattr(2) has them. Those that are not named stay
// those of the mount, but for the one of access times, which are exclusive.
func (f mountFlags) attributes() unix.MountAttr {
	var a unix.MountAttr
	for _, m := range []struct {
		bits mountFlags
		attr uint64
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY},
		{unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV},
		{unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW},
		{unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
		{unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME},
		{unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME},
	} {
		if f&m.bits != 0 {
			a.Attr_set |= m.attr
		}
	}
	if f&atimeFlags != 0 {
		a.Attr_clr = unix.MOUNT_ATTR__ATIME
	}
	return a
}

// names returns the flags as mount options.
func (f mountFlags) names() []string {
	var names []string
	for _, o := range mountOptions {
		if o.bits != 0 && f&o.bits == o.bits {
			names = append(names, o.name)
		}
	}
	return names
}

func (f mountFlags) String() string { return strings.Join(f.names(), ",") }

// in reports whether a mount with these options of /proc/self/mountinfo has at
// least these flags. The kernel prints no strictatime: it is the absence of
// the others.
func (f mountFlags) in(options []string) bool {
	for _, name := range f.names() {
		if name == "strictatime" {
			if slices.Contains(options, "relatime") || slices.Contains(options, "noatime") {
				return false
			}
			continue
		}
		if !slices.Contains(options, name) {
			return false
		}
	}
	return true
}

// MarshalJSON writes the names of the flags.
func (f mountFlags) MarshalJSON() ([]byte, error) { return json.Marshal(f.names()) }

// UnmarshalJSON reads what MarshalJSON wrote, and never less than the
// defaults.
func (f *mountFlags) UnmarshalJSON(b []byte) error {
	var names []string
	if err := json.Unmarshal(b, &names); err != nil {
		return err
	}
	flags, err := parseMountFlags(names)
	if err != nil {
		return fmt.Errorf("mount flags: %w", err)
	}
	*f = flags
	return nil
}
