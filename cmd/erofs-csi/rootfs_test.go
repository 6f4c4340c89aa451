package main

import (
	"bufio"
	"crypto/x509"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestImageRootfs: the container image's root file system is the static binaries, the
// certificates and the licence, readable by all, and the binaries run in it.
func TestImageRootfs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rootfs")
	out, err := exec.Command("make", "-C", "../..", "image-rootfs", "ROOTFS="+dir, "VERSION=v1.2.3").CombinedOutput()
	if err != nil {
		t.Fatalf("make image-rootfs: %v\n%s", err, out)
	}
	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, dir))
		}
		if info.Mode()&0o444 != 0o444 {
			t.Errorf("%s has mode %v: the image's user could not read it", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/LICENSE", "/erofs-csi", "/erofs-csi-holder", "/erofs-csi-supervisor", "/etc/ssl/certs/ca-certificates.crt"}; !slices.Equal(files, want) {
		t.Errorf("files %q, want %q", files, want)
	}
	bundle, err := os.ReadFile(dir + "/etc/ssl/certs/ca-certificates.crt")
	if err != nil || !x509.NewCertPool().AppendCertsFromPEM(bundle) {
		t.Errorf("the certificates hold none: %v", err)
	}
	for _, name := range []string{"erofs-csi", holderProgram, "erofs-csi-supervisor"} {
		binary, err := elf.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range binary.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s is not static: it has a segment %v", name, p.Type)
			}
		}
		_ = binary.Close()
	}
	if os.Getuid() != 0 {
		return // chroot(2)
	}
	run := exec.Command("/erofs-csi", "version")
	run.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	run.Dir = "/"
	if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), "v1.2.3") {
		t.Errorf("version: %v, %s; want v1.2.3", err, out)
	}

	// The holder becomes the small program. It asks /proc where that is.
	keep := exec.Command(dir+"/erofs-csi", "holder", "--socket", "h.sock")
	keep.Dir = t.TempDir()
	stdout, err := keep.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := keep.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Errorf("holder: %q, %v", line, err)
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", keep.Process.Pid))
	if err != nil || strings.TrimSpace(string(name)) != holderProgram[:15] { // TASK_COMM_LEN
		t.Errorf("the holder is %q, %v", name, err)
	}
	if err := errors.Join(keep.Process.Signal(syscall.SIGTERM), keep.Wait()); err != nil {
		t.Errorf("holder: %v", err)
	}
}

// TestDockerfile: the image gets its files from make image-rootfs alone, and a user
// that is a number, which Kubernetes' runAsNonRoot asks for.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, final, ok := strings.Cut(string(text), "\nFROM scratch\n")
	if !ok || !regexp.MustCompile(`(?m)^RUN make image-rootfs ROOTFS=/rootfs `).Match(text) {
		t.Fatal("no final stage from scratch, or no make image-rootfs in the one before")
	}
	got := regexp.MustCompile(`(?m)^(COPY|ADD|USER|ENTRYPOINT) .*`).FindAllString(final, -1)
	want := []string{"COPY --from=build /rootfs/ /", "USER 65532:65532", `ENTRYPOINT ["/erofs-csi"]`}
	if !slices.Equal(got, want) {
		t.Errorf("final stage %q, want %q", got, want)
	}
}
