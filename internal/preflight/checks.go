package preflight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/hostpkg"
	"banger/internal/paths"
	"banger/internal/template"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// What is enough.
const (
	spaceWarn   = 5 << 30 // an image, a kernel and some VMs
	spaceFail   = 1 << 30 // less than building the default image needs
	memoryWarn  = 2 << 30 // a default VM and what builds its image
	memoryFail  = 512 << 20
	filesWarn   = 1024 // a supervisor with a few dozen port forwards
	inotifyWarn = 16
)

func checkVMM(ctx context.Context, env *Env) Result {
	host, err := env.Driver.Probe(ctx)
	if err != nil {
		return fail(err.Error(), fault.HintOf(err))
	}
	return ok(fmt.Sprintf("%s %s (%s)", env.Driver.Name(), host.Version, host.Path))
}

// checkAccelerator warns only if there is something that the user can do: a host without virtualisation is what it is,
// and banger works there.
func checkAccelerator(ctx context.Context, env *Env) Result {
	host, err := env.Driver.Probe(ctx)
	if err != nil {
		return fail("not known without a virtual machine monitor", fault.HintOf(err))
	}
	detail := host.Accelerator + ": " + host.Reason
	if host.Hint != "" {
		return warn(detail, host.Hint)
	}
	return ok(detail)
}

func checkMemory(_ context.Context, env *Env) Result {
	available, err := memAvailable(filepath.Join(env.Root, "/proc/meminfo"))
	if err != nil {
		return warn("the free memory is not known: "+err.Error(), "")
	}
	detail := vm.FormatSize(available&^(1<<20-1)) + " available" // whole mebibytes
	switch {
	case available < memoryFail:
		return fail(detail, "banger vm list")
	case available < memoryWarn:
		return warn(detail, "banger vm run --memory 512M")
	}
	return ok(detail)
}

// memAvailable reads MemAvailable of /proc/meminfo.
func memAvailable(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		if len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseUint(fields[1], 10, 53)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

func checkSpace(_ context.Context, env *Env) Result {
	worst := ok("")
	var details []string
	for _, dir := range []string{env.Paths.Data, env.Paths.Cache} {
		free, err := env.Space(existing(dir))
		if err != nil {
			return warn("the free space is not known: "+err.Error(), "")
		}
		details = append(details, fmt.Sprintf("%s free in %s", vm.FormatSize(free&^(1<<20-1)), dir))
		switch {
		case free < spaceFail:
			worst = fail("", "export BANGER_HOME=/path/to/a/larger/disk")
		case free < spaceWarn && worst.Status == OK:
			worst = warn("", "export BANGER_HOME=/path/to/a/larger/disk")
		}
	}
	worst.Detail = strings.Join(details, ", ")
	return worst
}

// existing returns dir or the nearest directory above it that exists.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// freeSpace returns what an ordinary user may still write.
func freeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// checkDirectories looks at those that exist; the others are made when they are needed.
func checkDirectories(_ context.Context, env *Env) Result {
	p := env.Paths
	if longest := p.SupervisorSocket("0123456789ab"); len(longest) > paths.MaxSocketPath {
		return fail(fmt.Sprintf("socket path %s is %d bytes long, more than the %d that Linux allows", longest,
			len(longest), paths.MaxSocketPath), "export BANGER_HOME=/var/tmp/banger")
	}
	for _, dir := range []string{p.Config, p.Data, p.Cache, p.State, p.Run} {
		if r := checkDirectory(dir, dir == p.Run, env.UID()); r.Status != OK {
			return r
		}
	}
	return ok("data in " + p.Data + ", sockets in " + p.Run)
}

func checkDirectory(dir string, private bool, uid int) Result {
	var st unix.Stat_t
	at := existing(dir)
	if err := unix.Stat(at, &st); err != nil {
		return fail(fmt.Sprintf("%s: %v", at, err), "")
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fail(at+" is not a directory", "export BANGER_HOME=/path/to/a/directory")
	case unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS) != nil:
		return fail(at+" is not writable", "export BANGER_HOME=/path/to/a/directory")
	case at == dir && private && int(st.Uid) != uid:
		return fail(fmt.Sprintf("%s belongs to user %d and not to user %d", dir, st.Uid, uid),
			"export BANGER_HOME=/path/to/a/directory")
	case at == dir && private && st.Mode&0o077 != 0:
		return warn(fmt.Sprintf("%s has mode %04o: others may enter", dir, st.Mode&0o777), "chmod 700 "+dir)
	}
	return ok("")
}

func checkLimits(_ context.Context, env *Env) Result {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return warn("the limit of open files is not known: "+err.Error(), "")
	}
	detail := fmt.Sprintf("%d open files", files.Max)
	if files.Max < filesWarn {
		return warn(detail, "ulimit -Hn 4096")
	}
	if text, err := os.ReadFile(filepath.Join(env.Root, "/proc/sys/fs/inotify/max_user_instances")); err == nil {
		n, err := strconv.Atoi(string(bytes.TrimSpace(text)))
		detail += fmt.Sprintf(", %d inotify instances", n)
		if err == nil && n < inotifyWarn {
			return warn(detail, "sudo sysctl -w fs.inotify.max_user_instances=128")
		}
	}
	return ok(detail)
}

func checkNamespaces(_ context.Context, env *Env) Result {
	if err := env.BuildHost(); err != nil {
		return warn("images cannot be built by this user: "+err.Error(), fault.HintOf(err))
	}
	if env.UID() == 0 {
		return ok("not needed by root")
	}
	return ok("images can be built without root")
}

// checkProgram looks for a program; without it, what follows is true.
func checkProgram(program hostpkg.Program, without string) func(context.Context, *Env) Result {
	return func(_ context.Context, env *Env) Result {
		path, err := env.lookSystem(string(program))
		if err != nil {
			return fail(fmt.Sprintf("%s is not installed: %s", program, without), env.installHint(program))
		}
		return ok(path)
	}
}

// lookSystem looks in PATH and where the programs of the system are, which an ordinary user's PATH may lack.
func (e *Env) lookSystem(program string) (string, error) {
	path, err := e.LookPath(program)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = e.LookPath(filepath.Join(dir, program))
	}
	return path, err
}

func checkMirror(_ context.Context, env *Env) Result {
	mirror, err := env.Mirror()
	if err != nil {
		return warn(err.Error(), fault.HintOf(err))
	}
	return ok(mirror)
}

// checkLeftovers lists what a daemon or a removal that was cut off has left: directories of sockets that no process
// belongs to, directories that are half removed, databases that were moved aside. It takes nothing away, and needs no
// daemon to see it; "banger fsck" has one and sees more.
func checkLeftovers(_ context.Context, env *Env) Result {
	left, live, err := runDirs(env)
	if err != nil {
		return warn(err.Error(), "")
	}
	for _, root := range []string{env.Paths.VMs(), env.Paths.Images(), env.Paths.Kernels()} {
		found, _ := filepath.Glob(filepath.Join(root, ".removed-*"))
		left = append(left, found...)
	}
	if len(left) > 0 {
		return warn("nothing belongs to "+few(left), "banger fsck --repair")
	}
	if aside, _ := filepath.Glob(env.Paths.Database() + ".corrupt-*[0-9]"); len(aside) > 0 {
		return warn("a damaged database was moved aside; vms were found again: "+few(aside), "banger fsck")
	}
	return ok(fmt.Sprintf("none; %d running vms", live))
}

// checkTemplates looks for kinds of VMs that are booted because their templates have failed too often.
func checkTemplates(_ context.Context, env *Env) Result {
	store := template.Open(env.Paths.Templates())
	failures := store.Failures()
	for _, f := range failures {
		if err := store.Off(f.Key); err != nil {
			return warn(err.Error()+"; vms of that kind are booted, which takes longer", fault.HintOf(err))
		}
	}
	if len(failures) > 0 {
		return ok(fmt.Sprintf("%d failed last time and are tried again", len(failures)))
	}
	return ok("none has failed")
}

// few is a list for people, cut short.
func few(list []string) string {
	const most = 3
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// runDirs lists the directories of sockets that no process belongs to, and counts the others.
func runDirs(env *Env) (left []string, live int, err error) {
	entries, err := os.ReadDir(env.Paths.Run)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	for _, e := range entries {
		switch {
		case !e.IsDir():
		case alive(vmdir.Dir(env.Paths.VM(e.Name()))):
			live++
		default:
			left = append(left, env.Paths.VMRun(e.Name()))
		}
	}
	return left, live, nil
}

// alive reports whether a supervisor or a VMM of that VM lives.
func alive(dir vmdir.Dir) bool {
	p, ok, err := dir.ReadProcess()
	return err == nil && ok && (p.Supervisor.Alive() || p.VMM.Alive())
}
