package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/progress"
)

// TestPullDebian builds the real images from the archive that this host uses. The default one has been built already where
// there is a seed: by `banger image pull`, from nothing.
func TestPullDebian(t *testing.T) {
	needReal(t)
	seed, err := filepath.Glob(filepath.Join(os.Getenv("BANGER_TEST_SEED"), "data", "images", "sha256*"))
	if err != nil || len(seed) > 1 {
		t.Fatalf("images of the seed: %v, %v", seed, err)
	}
	for _, e := range Catalog() {
		t.Run(e.Name, func(t *testing.T) {
			if e.Name == Default && len(seed) == 1 {
				checkDebian(t, Rootfs(seed[0]), e.Sources[0].Location)
				return
			}
			pullDebian(t, e.Name)
		})
	}
}

func pullDebian(t *testing.T, name string) {
	t.Helper()
	staging := t.TempDir()
	entry, err := Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards last: progress comes from several goroutines
	start, last := time.Now(), ""
	dir, m, err := Pull(t.Context(), entry, PullOptions{Staging: staging, Progress: func(u progress.Update) {
		mu.Lock()
		defer mu.Unlock()
		if verb, _, _ := strings.Cut(u.Message, " "); verb != last {
			last = verb
			t.Logf("%5.1fs %s %d/%d %s", time.Since(start).Seconds(), u.Message, u.Done, u.Total, u.Unit)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%5.1fs done: %d bytes on the host, %d of tar, %d entries from %s", time.Since(start).Seconds(), m.Used, m.Tar,
		m.Entries, m.Origin)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("staged directory holds %v, err %v", entries, err)
	}
	if loaded, err := Load(dir); err != nil || loaded.Digest != m.Digest || loaded.Kernel == "" {
		t.Errorf("manifest %+v, err %v", loaded, err)
	}
	checkDebian(t, Rootfs(dir), entry.Sources[0].Location)
	if err := RemoveStaged(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(staging); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
}

// checkDebian looks into the image without mounting it.
func checkDebian(t *testing.T, rootfs, codename string) {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-fn", rootfs).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	look := func(command string) string {
		out, err := exec.CommandContext(t.Context(), "debugfs", "-R", command, rootfs).CombinedOutput()
		if err != nil {
			t.Fatalf("debugfs %s: %v", command, err)
		}
		return string(out)
	}
	for command, want := range map[string]string{
		"cat /usr/lib/os-release":                 `VERSION_CODENAME=` + codename,
		"cat /etc/passwd":                         `banger:x:1000:1000:[^:]*:/home/banger:/bin/bash`,
		"cat /etc/shadow":                         `(?m)^banger:!:`,
		"cat /etc/sudoers.d/banger":               `banger ALL=\(ALL:ALL\) NOPASSWD: ALL`,
		"stat /etc/sudoers.d/banger":              `Mode:  0440(?s:.*)User:     0 `,
		"stat /home/banger":                       `User:  1000   Group:  1000`,
		"stat /home/banger/.bashrc":               `User:  1000 `,
		"stat /usr/bin/sudo":                      `Mode:  04755`,
		"stat /bin":                               `Fast link dest: "usr/bin"`,
		"stat /etc/machine-id":                    `Type: regular(?s:.*)Size: 0`,
		"stat /etc/resolv.conf":                   `Type: regular(?s:.*)Size: 0`,
		"stat /etc":                               `Mode:  0755`,
		"stat /tmp":                               `Mode:  01777`,
		"stat /usr/share/doc/git/copyright":       `Type: regular`,
		"cat /var/lib/dpkg/status":                `(?m)^Package: python3-minimal$`,
		"stat /usr/bin/vim.tiny":                  `Type: regular`,
		"stat /etc/ssl/certs/ca-certificates.crt": `Type: regular`,
		"stat /usr/sbin/modprobe":                 `Type: symlink`,
		"show_super_stats -h":                     `banger-image`,
		// Debian 13's needs no capability: it asks for an ICMP socket, which the sysctl net.ipv4.ping_group_range allows.
		"ea_get -x /usr/bin/ping security.capability": map[string]string{"bookworm": `01 00 00 02`, "trixie": `not found`}[codename],
	} {
		if got := look(command); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: no %s in\n%.600s", command, want, got)
		}
	}
	for _, gone := range []string{
		"/etc/ssh/ssh_host_ed25519_key", "/etc/apt/preferences.d/banger-build", "/etc/dpkg/dpkg.cfg.d/banger-build",
		"/var/cache/apt/pkgcache.bin", "/var/log/dpkg.log", "/etc/apt/apt.conf.d/00mmdebstrap", "/usr/share/man/man1",
		"/usr/share/doc/git/README.md", "/var/lib/dbus/machine-id", "/usr/sbin/policy-rc.d",
	} {
		if got := look("stat " + gone); !strings.Contains(got, "not found") {
			t.Errorf("%s is in the image", gone)
		}
	}
	if lists := look("ls -p /var/lib/apt/lists"); strings.Contains(lists, "Packages") {
		t.Errorf("package lists are in the image: %s", lists)
	}
	out := filepath.Join(t.TempDir(), "sources")
	look("dump /etc/apt/sources.list.d/debian.sources " + out)
	if text, err := os.ReadFile(out); err == nil && strings.Contains(string(text), "@") {
		t.Errorf("credentials in the guest's sources: %s", text)
	}
}
