package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/rpc"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// seedNumber of the stress test's choices, to repeat a run that failed.
const seedNumber = "BANGER_TEST_STRESS_SEED"

func TestStress(t *testing.T) {
	dir, err := newHome()
	if err != nil {
		t.Fatal(err)
	}
	vars := append(os.Environ(), "BANGER_HOME="+dir, "HOME="+dir, "SHELL=/bin/sh")
	t.Cleanup(func() {
		if err := tearDown(dir, vars); err != nil {
			t.Error("left behind:", err)
		}
	})
	newStress(t, dir, vars).run(2000)
}

func TestRealStress(t *testing.T) {
	dir, vars := realHome(t)
	newStress(t, dir, vars).run(200)
}

// stress lets 8 clients do random things to 12 VMs while the daemon is killed, and knows what must be true afterwards.
type stress struct {
	t      *testing.T
	home   string
	vars   []string
	config client.Config
	real   bool
	slots  [12]slot

	done  atomic.Int64 // operations so far
	kills atomic.Int64
}

// slot is a VM that exists or does not. Whoever makes or removes it holds mu alone, everybody else shares it.
type slot struct {
	name   string
	mu     sync.RWMutex
	exists bool
	marker string // what its disk must hold; empty when the write did not succeed
}

const (
	stressClients = 8
	stressKills   = 20
)

func newStress(t *testing.T, home string, vars []string) *stress {
	s := &stress{t: t, home: home, vars: vars, real: bangerFor(vars) != "banger"}
	path, err := exec.LookPath(bangerFor(vars))
	if err != nil {
		t.Fatal(err)
	}
	var version struct{ Build string }
	out, err := banger(vars, "version", "--format", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &version)
	}
	if err != nil {
		t.Fatalf("version: %v: %s", err, out)
	}
	s.config = client.Config{Paths: paths.Under(home), Command: []string{path, "daemon", "run"}, Env: vars, Build: version.Build}
	for i := range s.slots {
		s.slots[i].name = fmt.Sprintf("vm-%02d", i) // none is a prefix of another
	}
	return s
}

func (s *stress) run(operations int64) {
	seed, err := strconv.ParseUint(os.Getenv(seedNumber), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	s.t.Logf("%s=%d", seedNumber, seed)
	var group errgroup.Group
	for i := range stressClients {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		group.Go(func() error {
			for s.done.Add(1) <= operations {
				if err := s.operate(random); err != nil {
					return err
				}
			}
			return nil
		})
	}
	stop := make(chan struct{})
	killer := make(chan struct{})
	go func() {
		defer close(killer)
		s.killDaemons(rand.New(rand.NewPCG(seed, 99)), operations, stop)
	}()
	err = group.Wait()
	close(stop)
	<-killer
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("%d operations, %d daemons killed", operations, s.kills.Load())
	s.settle()
}

// killDaemons kills the daemon at random moments, spread over the operations.
func (s *stress) killDaemons(random *rand.Rand, operations int64, stop <-chan struct{}) {
	for s.kills.Load() < stressKills {
		next := (s.kills.Load() + 1) * operations / (stressKills + 1)
		for s.done.Load() < next {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
		time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond)
		c, err := client.Attach(context.Background(), s.config)
		if err != nil {
			continue // nobody has started one since the last kill
		}
		status, err := c.Daemon.Status(context.Background(), connect.NewRequest(&bangerv1.StatusRequest{}))
		c.Close()
		if err == nil && syscall.Kill(int(status.Msg.GetPid()), syscall.SIGKILL) == nil {
			s.kills.Add(1)
		}
	}
}

// connect calls do with a client. A daemon that is killed meanwhile is an error of class Unavailable.
func (s *stress) connect(ctx context.Context, do func(*client.Client) error) error {
	c, err := client.Connect(ctx, s.config)
	if err != nil {
		return err
	}
	defer c.Close()
	return do(c)
}

// expected are the failures that a client has to live with while others use the same VMs and the daemon is killed.
func expected(err error) bool {
	return err == nil || slices.Contains([]fault.Class{
		fault.Unavailable, fault.Conflict, fault.Cancelled, fault.NotFound, fault.Exists,
	}, fault.ClassOf(err))
}

// operate does one thing to one VM.
func (s *stress) operate(random *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	v := &s.slots[random.IntN(len(s.slots))]
	kind := random.IntN(10)
	if kind < 3 || !v.there() { // a third makes and removes
		return s.makeOrRemove(ctx, v, random.IntN(3) == 0)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if !v.exists {
		return nil
	}
	err := s.connect(ctx, func(c *client.Client) error { return s.use(ctx, c, v, kind) })
	if !expected(err) {
		return fmt.Errorf("%s, operation %d: %w", v.name, kind, err)
	}
	return nil
}

func (v *slot) there() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.exists
}

func (s *stress) use(ctx context.Context, c *client.Client, v *slot, kind int) error {
	var err error
	switch kind {
	case 3:
		_, err = c.VMs.Stop(ctx, connect.NewRequest(&bangerv1.StopVMRequest{Ref: v.name, GraceMs: 2000}))
	case 4:
		_, err = c.VMs.Kill(ctx, connect.NewRequest(&bangerv1.KillVMRequest{Ref: v.name}))
	case 5, 6:
		_, err = c.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartVMRequest{Ref: v.name}))
	case 7:
		_, err = c.VMs.Set(ctx, connect.NewRequest(&bangerv1.SetVMRequest{Ref: v.name, SetLabels: map[string]string{"n": "1"}}))
	default:
		_, err = s.exec(ctx, c, v.name, "true")
	}
	return err
}

// makeOrRemove brings the VM into the world, or out of it.
func (s *stress) makeOrRemove(ctx context.Context, v *slot, remove bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var err error
	switch {
	case !v.exists:
		err = s.connect(ctx, func(c *client.Client) error { return s.create(ctx, c, v) })
	case remove:
		err = s.connect(ctx, func(c *client.Client) error {
			_, err := c.VMs.Remove(ctx, connect.NewRequest(&bangerv1.RemoveVMRequest{Ref: v.name, Force: true}))
			return err
		})
	default:
		return nil
	}
	if !expected(err) {
		return fmt.Errorf("%s: %w", v.name, err)
	}
	return s.lookUp(ctx, v)
}

func (s *stress) create(ctx context.Context, c *client.Client, v *slot) error {
	v.marker = ""
	begun, err := c.VMs.Create(ctx, connect.NewRequest(&bangerv1.CreateVMRequest{
		Spec: &bangerv1.VMSpec{Name: v.name, Cpus: 1, MemoryBytes: 256 << 20, DiskBytes: 256 << 20}, Start: true,
	}))
	if err != nil {
		return err
	}
	stream, err := c.Operations.Watch(ctx, connect.NewRequest(&bangerv1.WatchOperationRequest{Id: begun.Msg.GetOperationId()}))
	if err != nil {
		return rpc.FromConnect(err)
	}
	defer stream.Close()
	var last *bangerv1.Operation
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := rpc.FromConnect(stream.Err()); err != nil {
		return err
	}
	if err := rpc.FromProto(last.GetFault()); err != nil {
		return err
	}
	marker := v.name + "-" + last.GetResultId()
	if _, err := s.exec(ctx, c, v.name, "echo "+marker+" >"+s.markerFile(last.GetResultId())+" && sync"); err != nil {
		return err
	}
	v.marker = marker
	return nil
}

// markerFile is on the VM's own disk. The fake's guests are the host: there it is in the VM's directory, which has the
// same life.
func (s *stress) markerFile(id string) string {
	if s.real {
		return "/root/marker"
	}
	return filepath.Join(s.config.Paths.VM(id), "marker")
}

// exec runs a command in a guest by its supervisor.
func (s *stress) exec(ctx context.Context, c *client.Client, name, command string) (string, error) {
	at, err := c.VMs.Endpoint(ctx, connect.NewRequest(&bangerv1.EndpointRequest{Ref: name}))
	if err != nil {
		return "", err
	}
	if at.Msg.GetSocket() == "" {
		return "", fault.New(fault.Conflict, "%s does not run", name)
	}
	supervisor := vmclient.New(at.Msg.GetSocket())
	defer supervisor.Close()
	var out bytes.Buffer
	code, err := supervisor.Exec(ctx, vmclient.Exec{
		Start: &bangerv1.ExecStart{Argv: []string{"sh", "-c", command}}, Stdout: &out, Stderr: &out,
	})
	if err != nil {
		return "", err
	}
	if code >= 128 { // the VM was stopped under it
		return "", fault.New(fault.Conflict, "%s: ended by signal %d", name, code-128)
	}
	if code != 0 {
		return "", fmt.Errorf("%q in %s: exit code %d: %s", command, name, code, &out)
	}
	return strings.TrimSpace(out.String()), nil
}

// lookUp finds out whether the VM is there after an operation that may have been cut off. A create that was cut off is
// undone by the next daemon before it answers, or it has made the VM. A removal is finished beside its other work.
func (s *stress) lookUp(ctx context.Context, v *slot) error {
	for {
		state := ""
		err := s.connect(ctx, func(c *client.Client) error {
			found, err := c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: v.name}))
			if err == nil {
				state = found.Msg.GetState()
			}
			return err
		})
		switch {
		case err == nil && state == "deleting" && ctx.Err() == nil:
			time.Sleep(10 * time.Millisecond)
		case err == nil:
			v.exists = true
			return nil
		case fault.Is(err, fault.NotFound):
			v.exists = false
			return nil
		case !expected(err):
			return fmt.Errorf("look for %s: %w", v.name, err)
		}
	}
}

// settle checks the end: every VM that should exist runs and holds its marker, and there is nothing else.
func (s *stress) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	want := map[string]bool{}
	err := s.connect(ctx, func(c *client.Client) error {
		for i := range s.slots {
			v := &s.slots[i]
			if !v.exists {
				continue
			}
			want[v.name] = true
			started, err := c.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartVMRequest{Ref: v.name}))
			if err != nil {
				return fmt.Errorf("start %s at the end: %w", v.name, err)
			}
			if v.marker == "" {
				continue
			}
			if got, err := s.exec(ctx, c, v.name, "cat "+s.markerFile(started.Msg.GetId())); err != nil || got != v.marker {
				s.t.Errorf("%s holds %q, want %q (%v)", v.name, got, v.marker, err)
			}
		}
		return s.compare(ctx, c, want)
	})
	if err != nil {
		said, _ := os.ReadFile(s.config.Paths.DaemonLog())
		s.t.Fatalf("%v; the daemons say:\n%s", err, said[max(0, len(said)-(64<<10)):])
	}
}

// compare looks for rows, directories and sockets that should not be there. Processes are tearDown's matter.
func (s *stress) compare(ctx context.Context, c *client.Client, want map[string]bool) error {
	listed, err := c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{}))
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, v := range listed.Msg.GetVms() {
		ids[v.GetId()] = true
		if !want[v.GetSpec().GetName()] || v.GetState() != "running" {
			s.t.Errorf("%s (%s) is %s: %s", v.GetSpec().GetName(), v.GetId(), v.GetState(), v.GetReason())
		}
	}
	if len(ids) != len(want) {
		s.t.Errorf("%d rows, want %d", len(ids), len(want))
	}
	for _, dir := range []string{s.config.Paths.VMs(), s.config.Paths.Run, s.config.Paths.Staging()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if name := e.Name(); !ids[name] && name != "daemon.sock" && name != "start.lock" {
				s.t.Errorf("left: %s", filepath.Join(dir, name))
			}
		}
	}
	checked, err := c.Fsck.Check(ctx, connect.NewRequest(&bangerv1.FsckRequest{}))
	if err != nil {
		return err
	}
	for _, f := range checked.Msg.GetFindings() {
		s.t.Errorf("fsck: %s %s: %s", f.GetKind(), f.GetObject(), f.GetMessage())
	}
	return nil
}
