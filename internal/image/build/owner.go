package build

import (
	"bufio"
	"context"
	"io"
	"strconv"
	"strings"

	"banger/internal/fault"
)

// Where names of owners are looked up, in the stage and not on this machine.
const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
)

// owner is whom a copied file belongs to.
type owner struct{ uid, gid int }

// owner resolves USER[:GROUP]. A number needs no account, and is the group too where none is named; a name has the group
// of its account.
func (r *rootfs) owner(ctx context.Context, text string) (owner, error) {
	user, group, hasGroup := strings.Cut(text, ":")
	out := owner{}
	if uid, ok := parseID(user); ok {
		out = owner{uid, uid}
	} else if user != "" {
		fields, err := r.account(ctx, passwdFile, user, 4)
		if err != nil {
			return out, err
		}
		if fields == nil {
			return out, fault.New(fault.Invalid, "no user is called %s in %s of the stage: use a number, or make the account before", shown(user), passwdFile)
		}
		uid, okUser := parseID(fields[2])
		gid, okGroup := parseID(fields[3])
		if !okUser || !okGroup {
			return out, fault.New(fault.Invalid, "%s of the stage has no numbers for user %s", passwdFile, shown(user))
		}
		out = owner{uid, gid}
	}
	if !hasGroup || group == "" {
		return out, nil
	}
	gid, ok := parseID(group)
	if !ok {
		fields, err := r.account(ctx, groupFile, group, 3)
		if err != nil {
			return out, err
		}
		if fields == nil {
			return out, fault.New(fault.Invalid, "no group is called %s in %s of the stage: use a number, or make the group before", shown(group), groupFile)
		}
		if gid, ok = parseID(fields[2]); !ok {
			return out, fault.New(fault.Invalid, "%s of the stage has no number for group %s", groupFile, shown(group))
		}
	}
	out.gid = gid
	return out, nil
}

// parseID reads a user or group number. The last one means nobody at all in Linux.
func parseID(text string) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return int(n), err == nil && n < 1<<32-1
}

// account returns the fields of a name's line in a file of the stage; nil if there is none.
func (r *rootfs) account(ctx context.Context, file, name string, fields int) ([]string, error) {
	at, err := follow(r.find, "/", file, true)
	if err != nil {
		return nil, err
	}
	n, err := r.find(at)
	if err != nil || n == nil || n.from == nil {
		return nil, err
	}
	f, err := n.from.open(ctx, n)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, keptContents))
	for lines.Scan() {
		parts := strings.Split(lines.Text(), ":")
		if len(parts) >= fields && parts[0] == name {
			return parts, nil
		}
	}
	return nil, nil // a line that is too long ends the search as a missing name would
}
