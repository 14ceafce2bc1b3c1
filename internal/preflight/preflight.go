// Package preflight looks at the host before something fails on it: named checks, each with what was found and the
// command that mends it. Starting a VM and "banger doctor" use the same ones.
//
// No check takes part in what it looks at: nothing is created, started or sent anywhere, so that they may be run at any
// time, by anybody, in a few milliseconds.
package preflight

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"time"

	"banger/internal/hostpkg"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// Timeout bounds a single check. They take a millisecond or two, the first one after an upgrade of the VMM about 60.
const Timeout = 5 * time.Second

// Status is the outcome of a check.
type Status string

// The outcomes. With Fail something that banger does cannot work; with Warn it works worse, or not for everybody.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is a question to the host.
type Check struct {
	ID    string // stable, for programs
	Title string // for people
	run   func(ctx context.Context, env *Env) Result
}

// Result is the answer. Hint is a command, or empty.
type Result struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// Env is what the checks look at. Paths and Driver are required. What other parts of banger know better comes as a
// function; without it its check is left out. The rest has good values when it is empty and is set by tests.
type Env struct {
	Paths     paths.Paths
	Driver    hypervisor.Driver
	BuildHost func() error           // whether this user could build an image; an error has the hint
	Mirror    func() (string, error) // where packages would come from

	Root     string // stands before /proc
	LookPath func(string) (string, error)
	UID      func() int
	Space    func(dir string) (uint64, error) // free bytes on the file system of an existing directory
}

// Checks lists every check in the order of Run.
func Checks() []Check {
	return []Check{
		{"vmm", "virtual machine monitor", checkVMM},
		{"accelerator", "hardware virtualisation", checkAccelerator},
		{"memory", "memory", checkMemory},
		{"disk-space", "disk space", checkSpace},
		{"directories", "directories", checkDirectories},
		{"limits", "open files and inotify", checkLimits},
		{"user-namespaces", "user namespaces", checkNamespaces},
		{"mmdebstrap", "mmdebstrap", checkProgram(hostpkg.Mmdebstrap, "images cannot be built")},
		{"e2fsprogs", "e2fsprogs", checkProgram(hostpkg.E2fsprogs, "disks cannot be formatted")},
		{"kmod", "kmod", checkProgram(hostpkg.Kmod, "kernels cannot be unpacked")},
		{"mirror", "distribution mirror", checkMirror},
		{"leftovers", "leftovers", checkLeftovers},
		{"templates", "templates", checkTemplates},
	}
}

// Run runs the checks with the given ids, all of them if there are none, and returns their results in order.
func Run(ctx context.Context, env Env, ids ...string) []Result {
	env.fill()
	var results []Result
	for _, c := range Checks() {
		if len(ids) > 0 && !slices.Contains(ids, c.ID) || !env.can(c.ID) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, Timeout)
		r := c.run(ctx, &env)
		cancel()
		r.ID, r.Title = c.ID, c.Title
		results = append(results, r)
	}
	return results
}

// Worst returns the worst status among the results; that of none is OK.
func Worst(results []Result) Status {
	worst := OK
	for _, r := range results {
		if r.Status == Fail {
			return Fail
		}
		if r.Status == Warn {
			worst = Warn
		}
	}
	return worst
}

// can reports whether the part of banger that a check asks was given.
func (e *Env) can(id string) bool {
	switch id {
	case "user-namespaces":
		return e.BuildHost != nil
	case "mirror":
		return e.Mirror != nil
	}
	return true
}

func (e *Env) fill() {
	if e.LookPath == nil {
		e.LookPath = exec.LookPath
	}
	if e.UID == nil {
		e.UID = os.Geteuid
	}
	if e.Space == nil {
		e.Space = freeSpace
	}
}

// installHint is the command that installs what brings a program.
func (e *Env) installHint(p hostpkg.Program) string {
	return hostpkg.Host{LookPath: e.LookPath, UID: e.UID}.InstallHint(p)
}

func ok(detail string) Result         { return Result{Status: OK, Detail: detail} }
func warn(detail, hint string) Result { return Result{Status: Warn, Detail: detail, Hint: hint} }
func fail(detail, hint string) Result { return Result{Status: Fail, Detail: detail, Hint: hint} }
