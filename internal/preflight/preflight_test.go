package preflight

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/paths"
	"banger/internal/proc"
	"banger/internal/template"
	"banger/internal/vmdir"
)

// driver answers Probe with what a test wants.
type driver struct {
	hypervisor.Driver
	host hypervisor.Host
	err  error
}

func (d driver) Name() string                                   { return "qemu" }
func (d driver) Probe(context.Context) (hypervisor.Host, error) { return d.host, d.err }

// good returns an Env in which every check is content.
func good(t *testing.T) Env {
	t.Helper()
	root := t.TempDir()
	base, err := os.MkdirTemp("", "pf") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	p := paths.Under(base)
	if err := p.Ensure(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "proc/meminfo"), "MemTotal: 16000000 kB\nMemAvailable:    8388608 kB\n")
	write(t, filepath.Join(root, "proc/sys/fs/inotify/max_user_instances"), "128\n")
	return Env{
		Paths: p,
		Driver: driver{host: hypervisor.Host{
			Version: "7.2.22", Path: "/usr/bin/qemu-system-x86_64", Accelerator: "kvm", Reason: "/dev/kvm is usable (kvm_intel)",
		}},
		BuildHost: func() error { return nil },
		Mirror:    func() (string, error) { return "http://mirror.example/debian", nil },
		Root:      root,
		LookPath:  func(name string) (string, error) { return "/usr/bin/" + filepath.Base(name), nil },
		UID:       os.Geteuid,
		Space:     func(string) (uint64, error) { return 100 << 30, nil },
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// missing returns a LookPath that finds everything but one program.
func missing(program string) func(string) (string, error) {
	return func(name string) (string, error) {
		if filepath.Base(name) == program {
			return "", exec.ErrNotFound
		}
		return "/usr/bin/" + name, nil
	}
}

func TestAGoodHost(t *testing.T) {
	results := Run(t.Context(), good(t))
	if len(results) != len(Checks()) {
		t.Errorf("%d results of %d checks", len(results), len(Checks()))
	}
	for _, r := range results {
		if r.Status != OK || r.Hint != "" || r.Detail == "" || r.ID == "" || r.Title == "" {
			t.Errorf("%+v", r)
		}
	}
	if Worst(results) != OK {
		t.Error(Worst(results))
	}
}

func TestChecks(t *testing.T) {
	space := func(n uint64) func(string) (uint64, error) {
		return func(string) (uint64, error) { return n, nil }
	}
	for _, tc := range []struct {
		name   string
		id     string
		spoil  func(*testing.T, *Env)
		status Status
		detail string
		hint   string
	}{
		{"no vmm", "vmm", func(_ *testing.T, e *Env) {
			e.Driver = driver{err: fault.New(fault.Unavailable, "qemu is not installed").WithHint("apt-get install qemu")}
		}, Fail, "not installed", "apt-get install qemu"},
		{"no vmm, no accelerator", "accelerator", func(_ *testing.T, e *Env) {
			e.Driver = driver{err: fault.New(fault.Unavailable, "qemu is not installed").WithHint("apt-get install qemu")}
		}, Fail, "not known", "apt-get install qemu"},
		{"kvm_pvm", "accelerator", func(_ *testing.T, e *Env) {
			e.Driver = driver{host: hypervisor.Host{Accelerator: "tcg", Reason: "/dev/kvm is driven by kvm_pvm"}}
		}, OK, "tcg: /dev/kvm is driven by kvm_pvm", ""},
		{"kvm without permission", "accelerator", func(_ *testing.T, e *Env) {
			e.Driver = driver{host: hypervisor.Host{Accelerator: "tcg", Reason: "no permission", Hint: "sudo usermod -aG kvm me"}}
		}, Warn, "no permission", "sudo usermod -aG kvm me"},
		{"a template that is off", "templates", func(t *testing.T, e *Env) {
			store := template.Open(e.Paths.Templates())
			for range 3 {
				if err := store.Fail("0123456789ab", errors.New("boom")); err != nil {
					t.Fatal(err)
				}
			}
		}, Warn, "failed 3 times in a row, the last time: boom; vms of that kind are booted", "banger template rm 0123456789ab"},
		{"a template that failed once", "templates", func(t *testing.T, e *Env) {
			if err := template.Open(e.Paths.Templates()).Fail("0123456789ab", errors.New("boom")); err != nil {
				t.Fatal(err)
			}
		}, OK, "1 failed last time", ""},
		{"little memory", "memory", func(t *testing.T, e *Env) {
			write(t, filepath.Join(e.Root, "proc/meminfo"), "MemAvailable: 1048576 kB\n")
		}, Warn, "1G available", "--memory"},
		{"no memory", "memory", func(t *testing.T, e *Env) {
			write(t, filepath.Join(e.Root, "proc/meminfo"), "MemAvailable: 1024 kB\n")
		}, Fail, "1M available", "vm list"},
		{"odd meminfo", "memory", func(t *testing.T, e *Env) {
			write(t, filepath.Join(e.Root, "proc/meminfo"), "MemTotal: 1 kB\n")
		}, Warn, "not known", ""},
		{"little space", "disk-space", func(_ *testing.T, e *Env) { e.Space = space(4 << 30) }, Warn, "4G free", "BANGER_HOME"},
		{"no space", "disk-space", func(_ *testing.T, e *Env) { e.Space = space(1<<30 - 1) }, Fail, "1023M free", "BANGER_HOME"},
		{"odd file system", "disk-space", func(_ *testing.T, e *Env) {
			e.Space = func(string) (uint64, error) { return 0, errors.New("statfs: input/output error") }
		}, Warn, "not known", ""},
		{"long paths", "directories", func(_ *testing.T, e *Env) {
			e.Paths = paths.Under("/" + strings.Repeat("x", 100))
		}, Fail, "bytes long", "BANGER_HOME=/var/tmp/banger"},
		{"open run directory", "directories", func(t *testing.T, e *Env) {
			if err := os.Chmod(e.Paths.Run, 0o755); err != nil {
				t.Fatal(err)
			}
		}, Warn, "mode 0755", "chmod 700"},
		{"run directory of another", "directories", func(_ *testing.T, e *Env) {
			e.UID = func() int { return os.Geteuid() + 1 }
		}, Fail, "belongs to user", "BANGER_HOME"},
		{"a file in the way", "directories", func(t *testing.T, e *Env) {
			e.Paths.Cache = filepath.Join(e.Root, "file")
			write(t, e.Paths.Cache, "")
		}, Fail, "not a directory", "BANGER_HOME"},
		{"few inotify instances", "limits", func(t *testing.T, e *Env) {
			write(t, filepath.Join(e.Root, "proc/sys/fs/inotify/max_user_instances"), "4\n")
		}, Warn, "4 inotify", "sysctl"},
		{"no user namespaces", "user-namespaces", func(_ *testing.T, e *Env) {
			e.BuildHost = func() error { return fault.New(fault.Unavailable, "AppArmor").WithHint("sudo sysctl") }
		}, Warn, "AppArmor", "sudo sysctl"},
		{"no mmdebstrap", "mmdebstrap", func(_ *testing.T, e *Env) { e.LookPath = missing("mmdebstrap") }, Fail, "cannot be built", "install mmdebstrap"},
		{"no mkfs", "e2fsprogs", func(_ *testing.T, e *Env) { e.LookPath = missing("mkfs.ext4") }, Fail, "not installed", "install e2fsprogs"},
		{"no depmod", "kmod", func(_ *testing.T, e *Env) { e.LookPath = missing("depmod") }, Fail, "not installed", "install kmod"},
		{"no mirror", "mirror", func(_ *testing.T, e *Env) {
			e.Mirror = func() (string, error) {
				return "", fault.New(fault.Unavailable, "no mirror").WithHint("banger config path")
			}
		}, Warn, "no mirror", "banger config path"},
		{"leftover", "leftovers", func(t *testing.T, e *Env) {
			write(t, filepath.Join(e.Paths.VMRun("0123456789ab"), "qmp.sock"), "")
		}, Warn, "0123456789ab", "banger fsck --repair"},
		{"leftover of a dead process", "leftovers", func(t *testing.T, e *Env) {
			process(t, e, proc.Identity{PID: os.Getpid(), Start: 1})
		}, Warn, "0123456789ab", "banger fsck --repair"},
		{"half removed", "leftovers", func(t *testing.T, e *Env) {
			for _, n := range []string{"a", "b", "c", "d"} {
				write(t, filepath.Join(e.Paths.VMs(), ".removed-"+n, "disk.ext4"), "")
			}
		}, Warn, ".removed-c and 1 more", "banger fsck --repair"},
		{"damaged database", "leftovers", func(t *testing.T, e *Env) {
			write(t, e.Paths.Database()+".corrupt-20260102-030405", "")
		}, Warn, "was moved aside", "banger fsck"},
		{"live", "leftovers", func(t *testing.T, e *Env) {
			self, err := proc.Self()
			if err != nil {
				t.Fatal(err)
			}
			process(t, e, self)
		}, OK, "1 running", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := good(t)
			tc.spoil(t, &env)
			results := Run(t.Context(), env, tc.id)
			if len(results) != 1 {
				t.Fatalf("results = %+v", results)
			}
			r := results[0]
			if r.Status != tc.status || !strings.Contains(r.Detail, tc.detail) {
				t.Errorf("%+v, want %s with %q", r, tc.status, tc.detail)
			}
			if (r.Hint == "") != (tc.hint == "") || !strings.Contains(r.Hint, tc.hint) {
				t.Errorf("hint = %q, want %q", r.Hint, tc.hint)
			}
			if Worst(results) != tc.status {
				t.Errorf("Worst = %s", Worst(results))
			}
		})
	}
}

// process writes the record of a supervisor and makes the run directory of its VM.
func process(t *testing.T, e *Env, id proc.Identity) {
	t.Helper()
	dir := e.Paths.VM("0123456789ab")
	for _, d := range []string{dir, e.Paths.VMRun("0123456789ab")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := vmdir.Dir(dir).WriteProcess(vmdir.Process{Supervisor: id, StartedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
}

func TestChecksThatNobodyCanAnswerAreLeftOut(t *testing.T) {
	env := good(t)
	env.Mirror, env.BuildHost = nil, nil
	var got []string
	for _, r := range Run(t.Context(), env, "vmm", "mirror", "user-namespaces", "kmod") {
		got = append(got, r.ID)
	}
	if diff := cmp.Diff([]string{"vmm", "kmod"}, got); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
}

func TestProgramsOfTheSystemAreFoundWithoutThemInPath(t *testing.T) {
	env := good(t)
	env.LookPath = func(name string) (string, error) {
		if name == "/usr/sbin/depmod" {
			return name, nil
		}
		return "", exec.ErrNotFound
	}
	if r := Run(t.Context(), env, "kmod")[0]; r.Status != OK || r.Detail != "/usr/sbin/depmod" {
		t.Errorf("%+v", r)
	}
}

// TestThisHost runs the checks for real, apart from the driver: they must be quick anywhere.
func TestThisHost(t *testing.T) {
	env := good(t)
	env = Env{Paths: env.Paths, Driver: env.Driver}
	start := time.Now()
	results := Run(t.Context(), env)
	took := time.Since(start)
	for _, r := range results {
		t.Logf("%-5s %-16s %s (%s)", r.Status, r.ID, r.Detail, r.Hint)
	}
	if took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}
