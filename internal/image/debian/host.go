package debian

import (
	"bufio"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/hostpkg"
)

// minSubIDs is how many subordinate ids an ordinary user needs: those of a Debian system up to nogroup.
const minSubIDs = 65536

// host is what decides whether and how a build can run here.
type host struct {
	root     bool
	canMount bool   // CAP_SYS_ADMIN
	uid      int    // of the caller
	user     string // its name
	fs       string // where etc and proc are; "/" but in tests
	lookPath func(string) (string, error)
}

// thisHost looks at the real one.
func thisHost() host {
	h := host{root: os.Geteuid() == 0, uid: os.Getuid(), fs: "/", lookPath: exec.LookPath}
	if u, err := user.Current(); err == nil {
		h.user = u.Username
	}
	var caps [2]unix.CapUserData // two words of 32 capabilities
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &caps[0]); err == nil {
		h.canMount = caps[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
	}
	return h
}

// check finds out beforehand, with a hint, what mmdebstrap would stumble over.
func (h host) check() error {
	if h.root {
		if !h.canMount {
			return fault.New(fault.Unavailable, "this root user may not mount (no CAP_SYS_ADMIN), so it cannot build an image").
				WithHint("run banger as an ordinary user, or give the container CAP_SYS_ADMIN")
		}
		return nil
	}
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := h.lookPath(tool); err != nil {
			return fault.Wrap(fault.Unavailable, err, "%s is needed to build an image without root", tool).
				WithHint("%s", hostpkg.InstallHint(hostpkg.UIDMap))
		}
	}
	for _, file := range []string{"etc/subuid", "etc/subgid"} {
		if h.subIDs(file) < minSubIDs {
			return fault.New(fault.Unavailable, "user %s has no range of %d subordinate ids in /%s", h.user, minSubIDs, file).
				WithHint("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", h.user)
		}
	}
	return h.checkNamespaces()
}

// checkNamespaces reads the switches by which distributions forbid user namespaces.
func (h host) checkNamespaces() error {
	switch {
	case h.sysctl("kernel/unprivileged_userns_clone") == "0":
		return fault.New(fault.Unavailable, "this host does not allow user namespaces to ordinary users").
			WithHint("sudo sysctl -w kernel.unprivileged_userns_clone=1")
	case h.sysctl("user/max_user_namespaces") == "0":
		return fault.New(fault.Unavailable, "this host does not allow user namespaces").
			WithHint("sudo sysctl -w user.max_user_namespaces=15000")
	case h.sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1" && !h.exists("etc/apparmor.d/mmdebstrap"):
		return fault.New(fault.Unavailable, "AppArmor on this host does not allow user namespaces to mmdebstrap").
			WithHint("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
	}
	return nil
}

// subIDs returns the size of the first range of the user in file. mmdebstrap looks at the first one only, and knows
// names only.
func (h host) subIDs(file string) int {
	f, err := os.Open(filepath.Join(h.fs, file))
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) == 3 && fields[0] == h.user {
			n, _ := strconv.Atoi(fields[2]) // 0 when it is no number
			return n
		}
	}
	return 0
}

func (h host) sysctl(name string) string {
	data, _ := os.ReadFile(filepath.Join(h.fs, "proc/sys", name)) // not there: this kernel has no such switch
	return strings.TrimSpace(string(data))
}

func (h host) exists(path string) bool {
	_, err := os.Stat(filepath.Join(h.fs, path))
	return err == nil
}
