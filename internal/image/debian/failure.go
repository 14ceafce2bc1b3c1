package debian

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"banger/internal/ext4"
	"banger/internal/fault"
)

// telling are the parts of messages by which apt, dpkg, tar and mmdebstrap say what went wrong.
func telling() []string {
	return []string{
		"Could not resolve", "Temporary failure", "Could not connect", "Connection timed out", "Connection failed",
		"Network is unreachable", "404  Not Found", "403  Forbidden", "Failed to fetch", "does not have a Release file",
		"No space left", "not signed", "NO_PUBKEY", "EXPKEYSIG", "is expired", "not valid yet", "Hash Sum mismatch",
		"unexpected size", "Unable to locate package", "unmet dependencies", "dpkg: error", "permission denied",
		"Permission denied", "Operation not permitted", "unshare", "newuidmap", "newgidmap", "cannot ",
	}
}

// kinds are classes of failure, the first that fits counts. A class is shown by any of the parts.
func kinds() []kind {
	return []kind{
		{fault.Exhausted, "", []string{"No space left", "Disk quota exceeded"}},
		{fault.Unavailable, "banger doctor", []string{"newuidmap", "newgidmap", "unshare() failed", "unshare syscall"}},
		{fault.Denied, "sudo apt-get install --only-upgrade debian-archive-keyring", []string{"NO_PUBKEY", "EXPKEYSIG"}},
		{fault.Denied, "date", []string{"is expired", "not valid yet"}},
		{fault.Denied, mirrorHint, []string{"not signed", "Hash Sum mismatch", "unexpected size"}},
		{fault.Unavailable, mirrorHint, []string{
			"Could not resolve", "Temporary failure", "Could not connect", "Connection timed out", "Connection failed",
			"Network is unreachable", "404  Not Found", "403  Forbidden", "Failed to fetch", "does not have a Release file",
		}},
	}
}

type kind struct {
	class fault.Class
	hint  string
	parts []string
}

// explain makes the fault of a program that ended with err from its last messages.
func (m *meter) explain(err error, scratch string) error {
	m.mu.Lock()
	tail := slices.Clone(m.tail)
	m.mu.Unlock()
	cause := errors.New(summary(tail, err))
	for _, k := range kinds() {
		if !slices.ContainsFunc(tail, func(line string) bool { return containsAny(line, k.parts) }) {
			continue
		}
		if k.class == fault.Exhausted {
			return ext4.Exhausted(syscall.ENOSPC, scratch, spaceNeeded)
		}
		return fault.Wrap(k.class, cause, "mmdebstrap").WithHint("%s", k.hint)
	}
	return fault.Wrap(fault.Internal, cause, "mmdebstrap").WithHint("banger doctor")
}

// summary picks up to three messages that tell the cause, else the last three, into one line.
func summary(tail []string, err error) string {
	var picked []string
	for _, line := range tail {
		line = strings.TrimSpace(strings.TrimLeft(line, "E:W "))
		if containsAny(line, telling()) && !slices.Contains(picked, line) {
			picked = append(picked, line)
		}
	}
	if len(picked) == 0 {
		picked = slices.DeleteFunc(tail, func(line string) bool { return strings.HasPrefix(line, "I: ") })
		picked = picked[max(0, len(picked)-3):]
	}
	var exit *exec.ExitError
	if len(picked) == 0 || !errors.As(err, &exit) {
		return err.Error()
	}
	return strings.Join(picked[:min(3, len(picked))], "; ")
}

func containsAny(line string, parts []string) bool {
	return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(line, part) })
}
