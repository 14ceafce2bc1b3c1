// Package hostmem says how much memory this process and its children can still take, and whether it is getting short.
//
// What counts is the least of what the host and every control group around this process have left. File pages that
// nobody uses are free in both counts: the kernel's own estimate (MemAvailable) has them, and of a group's usage they are
// taken off.
package hostmem

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxFile bounds what is read of one of the kernel's files.
const maxFile = 1 << 20

// Host is where the kernel's files are. The zero value is the host that this process runs on.
type Host struct {
	Root string // instead of "/", in tests
}

// Free is what is left.
type Free struct {
	Bytes uint64
	Limit string // what limits it, for people: "the host" or a control group
}

// Available returns how much memory can still be taken without swapping, or killing anything.
func (h Host) Available() (Free, error) {
	bytes, err := h.meminfo("MemAvailable")
	if err != nil {
		return Free{}, err
	}
	free := Free{Bytes: bytes, Limit: "the host"}
	for _, g := range h.groups() {
		if left, ok := g.left(); ok && left < free.Bytes {
			free = Free{Bytes: left, Limit: "control group " + g.name}
		}
	}
	return free, nil
}

// Pressure is the share of time, in percent over the last ten seconds, in which tasks waited for memory (the kernel's
// pressure stall information).
type Pressure struct {
	Some float64 // at least one of them
	Full float64 // all of them
}

// High reports whether the host has better things to do with its memory than to keep what may be needed later.
func (p Pressure) High() bool { return p.Some >= 10 || p.Full >= 2 }

// Pressure returns the worst of the host's and the groups'. A kernel that does not tell it has none.
func (h Host) Pressure() Pressure {
	worst := pressureOf(h.path("proc/pressure/memory"))
	for _, g := range h.groups() {
		p := pressureOf(filepath.Join(g.dir, "memory.pressure"))
		worst.Some, worst.Full = max(worst.Some, p.Some), max(worst.Full, p.Full)
	}
	return worst
}

func (h Host) path(name string) string {
	root := h.Root
	if root == "" {
		root = "/"
	}
	return filepath.Join(root, name)
}

// meminfo returns one line of /proc/meminfo in bytes.
func (h Host) meminfo(key string) (uint64, error) {
	path := h.path("proc/meminfo")
	text, err := read(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		if name != key {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 54)
		if err != nil {
			return 0, fmt.Errorf("%s: %s: %w", path, key, err)
		}
		return n << 10, nil
	}
	return 0, fmt.Errorf("%s has no %s", path, key)
}

// group is one control group around this process.
type group struct {
	dir, name string
	v1        bool
}

// groups returns the groups of this process that may limit its memory, from its own up to the root of what is mounted.
func (h Host) groups() []group {
	own, err := read(h.path("proc/self/cgroup"))
	if err != nil {
		return nil
	}
	mounts := h.mounts()
	var all []group
	for line := range strings.Lines(own) {
		id, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		switch {
		case id == "0" && controllers == "":
			all = append(all, mounts.v2.up(path, false)...)
		case hasWord(controllers, "memory"):
			all = append(all, mounts.v1.up(path, true)...)
		}
	}
	return all
}

// mount is where a hierarchy is mounted, and which of its groups is the root of the mount.
type mount struct{ dir, root string }

type mounts struct{ v1, v2 mount }

// mounts looks for the hierarchies: see proc(5), mountinfo.
func (h Host) mounts() (found mounts) {
	text, err := read(h.path("proc/self/mountinfo"))
	if err != nil {
		return found
	}
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		what, fs := strings.Fields(before), strings.Fields(after)
		if !ok || len(what) < 5 || len(fs) < 3 {
			continue
		}
		m := mount{dir: h.path(what[4]), root: what[3]}
		switch {
		case fs[0] == "cgroup2" && found.v2.dir == "":
			found.v2 = m
		case fs[0] == "cgroup" && hasWord(fs[2], "memory") && found.v1.dir == "":
			found.v1 = m
		}
	}
	return found
}

// up returns the groups from path up to the root of the mount.
func (m mount) up(path string, v1 bool) (all []group) {
	if m.dir == "" {
		return nil
	}
	rel, err := filepath.Rel(m.root, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		rel = "." // the mount shows only a part, as in a container: its root is the nearest there is
	}
	for at := filepath.Clean("/" + rel); ; at = filepath.Dir(at) {
		all = append(all, group{dir: filepath.Join(m.dir, at), name: filepath.Join(m.root, at), v1: v1})
		if at == "/" {
			return all
		}
	}
}

// left returns what a group may still take. ok is false when it has no limit.
func (g group) left() (bytes uint64, ok bool) {
	limitFile, usedFile, idle := "memory.max", "memory.current", "inactive_file"
	if g.v1 {
		limitFile, usedFile, idle = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
	}
	limit, okLimit := number(filepath.Join(g.dir, limitFile))
	if high, ok := number(filepath.Join(g.dir, "memory.high")); ok && !g.v1 && (!okLimit || high < limit) {
		limit, okLimit = high, true // nobody is killed above it, but all are slowed down until they stand still
	}
	used, okUsed := number(filepath.Join(g.dir, usedFile))
	if !okLimit || !okUsed || limit > math.MaxInt64/2 { // v1 says "none" with a huge number
		return 0, false
	}
	used -= min(used, statOf(filepath.Join(g.dir, "memory.stat"), idle))
	return limit - min(limit, used), true
}

// number reads a file with one number. "max" is none.
func number(path string) (uint64, bool) {
	text, err := read(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	return n, err == nil
}

// statOf reads one line of a file of names and numbers.
func statOf(path, key string) uint64 {
	text, err := read(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == key {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

func pressureOf(path string) (p Pressure) {
	text, err := read(path)
	if err != nil {
		return p
	}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		value, ok := strings.CutPrefix(fields[1], "avg10=")
		n, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil || math.IsNaN(n) {
			continue
		}
		switch fields[0] {
		case "some":
			p.Some = n
		case "full":
			p.Full = n
		}
	}
	return p
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

func read(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(text), err
}
