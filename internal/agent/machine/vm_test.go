package machine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/agentwire"
	"banger/internal/ext4"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qemu"
	"banger/internal/kernel"
	"banger/internal/kernel/initramfs"
)

// The tests of this file's package that are called TestVM... boot real machines:
//
//	BANGER_TEST_VM=1          they are wanted
//	BANGER_TEST_KERNEL=DIR    the directory of a kernel (package kernel makes them)
//	BANGER_TEST_SEED=DIR      a BANGER_HOME with the default image, for the tests that need one
const (
	wantedVar = "BANGER_TEST_VM"
	kernelVar = "BANGER_TEST_KERNEL"
	seedVar   = "BANGER_TEST_SEED"
)

const (
	bootTimeout = time.Minute
	execTimeout = 2 * time.Minute
	diskSize    = 4 << 30 // sparse
)

// lab is what all machines of a test run share.
type lab struct {
	dir       string
	kernelDir string
	initramfs string
	driver    hypervisor.Driver
}

var theLab = sync.OnceValues(makeLab)

// newLab returns the lab, or skips the test.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv(wantedVar) != "1" {
		t.Skipf("boots virtual machines: set %s=1", wantedVar)
	}
	l, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// labDir is the lab's directory, if there is a lab.
var labDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if labDir != "" {
		_ = os.RemoveAll(labDir)
	}
	os.Exit(code)
}

func makeLab() (*lab, error) {
	kernelDir := os.Getenv(kernelVar)
	if kernelDir == "" {
		return nil, fmt.Errorf("%s is set, %s is not", wantedVar, kernelVar)
	}
	manifest, err := kernel.Load(kernelDir)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "ag")
	if err != nil {
		return nil, err
	}
	labDir = dir
	agent := filepath.Join(dir, "agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "banger/cmd/banger-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	data, err := os.ReadFile(agent)
	if err != nil {
		return nil, err
	}
	ramdisk, err := initramfs.Ensure(dir, kernelDir, manifest, data)
	if err != nil {
		return nil, err
	}
	return &lab{dir: dir, kernelDir: kernelDir, initramfs: ramdisk, driver: qemu.New(qemu.Options{CacheDir: dir})}, nil
}

// vm is a running guest that is configured.
type vm struct {
	*guest.Client
	machine    hypervisor.Machine
	console    *buffer
	configured agentwire.Configured
	disk       string
}

// boot starts a machine on an image file and configures it as edit, which may be nil, has changed the configuration. It
// ends with the test. A guest that does not come up gets one more chance, as a supervisor gives it.
func (l *lab) boot(t *testing.T, image string, edit func(*agentwire.Config)) *vm {
	t.Helper()
	return l.bootDisk(t, image, l.disk(t), edit)
}

// disk makes the disk of a machine.
func (l *lab) disk(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := ext4.CopyFormatted(t.Context(), l.dir, diskSize, disk); err != nil {
		t.Fatal(err)
	}
	return disk
}

func (l *lab) bootDisk(t *testing.T, image, disk string, edit func(*agentwire.Config)) *vm {
	t.Helper()
	for try := 1; ; try++ {
		v, err := l.start(t, image, disk, edit)
		if err == nil {
			return v
		}
		t.Logf("boot %d: %v", try, err)
		if v != nil {
			t.Logf("console:\n%s", v.console)
			v.kill()
		}
		if try == 2 {
			t.Fatal("the guest does not come up")
		}
	}
}

func (l *lab) start(t *testing.T, image, disk string, edit func(*agentwire.Config)) (*vm, error) {
	t.Helper()
	run, err := os.MkdirTemp("", "ag") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	v := &vm{console: &buffer{}, disk: disk}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), bootTimeout)
	defer cancel()
	v.machine, err = l.driver.Start(ctx, hypervisor.Spec{
		ID: "0123456789ab", Name: "lab", CPUs: 1, Memory: 512 << 20,
		Kernel: filepath.Join(l.kernelDir, kernel.ImageFile), Initramfs: l.initramfs,
		Disks: []hypervisor.Disk{
			{Path: image, ReadOnly: true, Serial: "image"},
			{Path: disk, Serial: "data"},
			{Path: filepath.Join(l.kernelDir, kernel.ModulesFile), ReadOnly: true, Serial: "modules"},
		},
		Network: hypervisor.Network{Kind: hypervisor.NetworkUser, MAC: "02:00:00:00:00:01"},
		RunDir:  run, Console: v.console, Log: v.console,
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(v.kill)
	for err = errors.New("not tried"); err != nil && ctx.Err() == nil; {
		err = v.connect(ctx, t)
	}
	if err == nil {
		v.configured, err = v.Configure(ctx, l.config(edit))
	}
	return v, err
}

// connect makes one try to reach the agent, as long as a supervisor's.
func (v *vm) connect(ctx context.Context, t *testing.T) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := v.machine.ConnectAgent(ctx)
	if err != nil {
		return err
	}
	mux, err := guest.ConnectMux(ctx, conn)
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = mux.Close() })
	v.Client = guest.NewClient(mux)
	_, err = v.Hello(ctx)
	return err
}

// config is what a daemon would send.
func (l *lab) config(edit func(*agentwire.Config)) agentwire.Config {
	config := agentwire.Config{
		Hostname: "lab", MachineID: "0123456789abcdef0123456789abcdef", UnixNano: time.Now().UnixNano(),
		Entropy: make([]byte, 64),
		Disks:   agentwire.Disks{Image: "image", Data: "data", Modules: "modules"},
		Network: &agentwire.Network{
			Address: "10.90.0.16/16", Gateway: hypervisor.UserGateway, DNS: []string{hypervisor.UserDNS},
		},
	}
	if edit != nil {
		edit(&config)
	}
	return config
}

// kill ends the machine.
func (v *vm) kill() {
	_ = v.machine.Signal(int(syscall.SIGKILL))
	<-v.machine.Done()
}

// shutDown has the guest go down by itself, which must leave its disk in order.
func (v *vm) shutDown(t *testing.T) {
	t.Helper()
	if err := v.Shutdown(t.Context(), agentwire.Shutdown{GraceMillis: 1000}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-v.machine.Done():
	case <-time.After(bootTimeout):
		t.Fatalf("the guest does not go down; console:\n%s", v.console)
	}
	if said := v.console.String(); strings.Contains(said, "was not unmounted") {
		t.Errorf("console:\n%s", said)
	}
}

// outcome is what a command did.
type outcome struct {
	Stdout, Stderr string
	Code           int
}

// exec runs a command to its end.
func (v *vm) exec(t *testing.T, start agentwire.ExecStart) (outcome, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), execTimeout)
	defer cancel()
	p, err := v.Exec(ctx, start)
	if err != nil {
		return outcome{}, err
	}
	defer func() { _ = p.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = p.Close() })
	defer stop()
	var stdout, stderr bytes.Buffer
	for {
		event, err := p.Next()
		if err != nil {
			return outcome{}, fmt.Errorf("%q: %w", start.Argv, err)
		}
		stdout.Write(event.Stdout)
		stderr.Write(event.Stderr)
		if event.Exited != nil {
			return outcome{stdout.String(), stderr.String(), event.Exited.Code}, nil
		}
	}
}

// run runs a command that has to succeed and returns its output.
func (v *vm) run(t *testing.T, argv ...string) string {
	t.Helper()
	return v.must(t, agentwire.ExecStart{Argv: argv})
}

// must is run with all that a command can have.
func (v *vm) must(t *testing.T, start agentwire.ExecStart) string {
	t.Helper()
	got, err := v.exec(t, start)
	if err != nil || got.Code != 0 {
		t.Fatalf("%q %s: %v, code %d\n%s%s\nconsole:\n%s", start.Argv, start.Tool, err, got.Code, got.Stdout[:min(len(got.Stdout), 2000)], got.Stderr, v.console)
	}
	return got.Stdout
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu  sync.Mutex // guards the field below
	buf bytes.Buffer
}

// Write appends.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns what was written.
func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
