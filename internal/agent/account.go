package agent

import (
	"cmp"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// account is who a command runs as.
type account struct {
	name   string
	uid    uint32
	gid    uint32
	groups []uint32
	home   string
	shell  string
}

// accounts finds accounts and remembers them as long as the two files stay as they are: reading and splitting them for
// every command takes milliseconds under software emulation. The zero value is ready.
type accounts struct {
	mu    sync.Mutex // guards the fields below
	files [2]fileID
	known map[string]account
}

// fileID tells one content of a file from another. Programs that edit accounts put a new file in the old one's place.
type fileID struct {
	inode   uint64
	size    int64
	changed unix.Timespec
}

func identify(path string) fileID {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return fileID{}
	}
	return fileID{st.Ino, st.Size, st.Ctim}
}

// maxKnown bounds what is remembered: the host may name any number of users.
const maxKnown = 100

// lookUp is lookupAccount with memory.
func (a *accounts) lookUp(etc, spec string) (account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := [2]fileID{identify(filepath.Join(etc, "passwd")), identify(filepath.Join(etc, "group"))}
	if now != a.files || len(a.known) >= maxKnown {
		a.files, a.known = now, map[string]account{}
	}
	if acc, ok := a.known[spec]; ok {
		return acc, nil
	}
	acc, err := lookupAccount(etc, spec)
	if err == nil && now != [2]fileID{} {
		a.known[spec] = acc
	}
	return acc, err
}

// Fields of a line of /etc/passwd and of /etc/group.
const (
	passwdName, passwdUID, passwdGID, passwdHome, passwdShell, passwdFields = 0, 2, 3, 5, 6, 7
	groupName, groupGID, groupMembers, groupFields                          = 0, 2, 3, 4
)

// lookupAccount finds the account of spec: a user's name or number, with a group's name or number after a colon if it
// is to be another than the user's own. A number need not be in /etc/passwd. etc is the directory of the two files.
func lookupAccount(etc, spec string) (account, error) {
	user, group, hasGroup := strings.Cut(spec, ":")
	passwd := readTable(filepath.Join(etc, "passwd"), passwdGID+1, passwdFields)
	groups := readTable(filepath.Join(etc, "group"), groupGID+1, groupFields)

	acc, err := findUser(passwd, user)
	if err != nil {
		return account{}, err
	}
	if hasGroup {
		gid, err := findGroup(groups, group)
		if err != nil {
			return account{}, err
		}
		acc.gid, acc.groups = gid, []uint32{gid}
		return acc, nil
	}
	acc.groups = []uint32{acc.gid}
	for _, line := range groups {
		if acc.name == "" || !slices.Contains(strings.Split(line[groupMembers], ","), acc.name) {
			continue
		}
		if gid, ok := parseID(line[groupGID]); ok && !slices.Contains(acc.groups, gid) {
			acc.groups = append(acc.groups, gid)
		}
	}
	return acc, nil
}

// findUser finds a user by name or, if no name matches, by number.
func findUser(passwd [][]string, user string) (account, error) {
	id, numeric := parseID(user)
	for _, byName := range []bool{true, false} {
		for _, line := range passwd {
			uid, ok1 := parseID(line[passwdUID])
			gid, ok2 := parseID(line[passwdGID])
			if !ok1 || !ok2 {
				continue
			}
			if byName && line[passwdName] == user || !byName && numeric && uid == id {
				home := cmp.Or(line[passwdHome], "/")
				return account{name: line[passwdName], uid: uid, gid: gid, home: home, shell: line[passwdShell]}, nil
			}
		}
	}
	switch {
	case user == "root" || numeric && id == 0: // an image without /etc/passwd has a root all the same
		return account{name: "root", home: rootHome()}, nil
	case numeric:
		return account{uid: id, home: "/"}, nil
	}
	return account{}, fault.New(fault.Invalid, "user %q does not exist in the guest", user)
}

// rootHome is root's home where nothing says which it is.
func rootHome() string {
	const home = "/root"
	if info, err := os.Stat(home); err == nil && info.IsDir() {
		return home
	}
	return "/"
}

// findGroup finds a group's number.
func findGroup(groups [][]string, group string) (uint32, error) {
	for _, line := range groups {
		if gid, ok := parseID(line[groupGID]); ok && line[groupName] == group {
			return gid, nil
		}
	}
	if gid, ok := parseID(group); ok {
		return gid, nil
	}
	return 0, fault.New(fault.Invalid, "group %q does not exist in the guest", group)
}

// maxTable bounds what is read of /etc/passwd and of /etc/group, which the guest's own users write.
const maxTable = 4 << 20

// readTable reads the lines of a colon-separated file that have at least so many fields, and fills them up to the right
// number with empty ones: files that were written by hand for a small image end early. A file that is not there has no
// lines, nor has what is no file: a pipe in its place must not hold up every command.
func readTable(path string, least, fields int) [][]string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxTable))
	if err != nil {
		return nil
	}
	var table [][]string
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) < least || len(f) > fields || f[0] == "" {
			continue
		}
		for len(f) < fields {
			f = append(f, "")
		}
		table = append(table, f)
	}
	return table
}

// parseID parses a user's or group's number. The highest means "none" to the kernel and is no number.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && uint32(n) != ^uint32(0)
}

func uint32Text(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// credential is what a process has to change to, nil if it is that already. Only root can change: for anybody else
// (an agent in an ordinary process) being somebody else is refused.
func (a account) credential() (*syscall.Credential, error) {
	switch euid := os.Geteuid(); {
	case euid == 0:
		return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}, nil
	case uint32(euid) == a.uid:
		return nil, nil
	}
	return nil, fault.New(fault.Denied, "the agent does not run as root and cannot become user %d", a.uid)
}
