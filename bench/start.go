package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/agentwire"
	"banger/internal/diskcopy"
	"banger/internal/guest"
	"banger/internal/vmdir"
)

// patience is how long the bench waits for what the daemon does in the background.
const patience = 3 * time.Minute

// warm waits until VMs of the default kind start from a prepared template, and takes the launch of one as the floor's.
func (b *bench) warm(ctx context.Context) error {
	for deadline := time.Now().Add(patience); ; {
		_, _ = b.command(ctx, "vm", "rm", "--force", benchVM)
		if _, err := b.command(ctx, "vm", "run", "--detach", "--name", benchVM); err != nil {
			return err
		}
		launch, err := b.launchOf(ctx, benchVM)
		if err != nil {
			return err
		}
		b.launch = launch
		if launch.Prepared || time.Now().After(deadline) {
			return nil // without one the ordinary template is the floor
		}
		if err := sleep(ctx, 5*time.Second); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// shown is what the bench reads of `vm show`.
type shown struct {
	Dir           string
	Accelerator   string
	VMMPID        int `json:"vmm_pid"`
	SupervisorPID int `json:"supervisor_pid"`
}

func (b *bench) show(ctx context.Context, name string) (s shown, err error) {
	text, err := b.command(ctx, "vm", "show", "--format", "json", name)
	if err == nil {
		err = json.Unmarshal([]byte(text), &s)
	}
	return s, err
}

func (b *bench) launchOf(ctx context.Context, name string) (vmdir.Launch, error) {
	s, err := b.show(ctx, name)
	if err != nil {
		return vmdir.Launch{}, err
	}
	return vmdir.Dir(s.Dir).ReadLaunch()
}

// floor is the least that a start from the same template takes by the same driver, with nothing of banger around it: copy
// the disk, restore, wake (or configure), run true.
func (b *bench) floor(ctx context.Context, i int) (stop func(), err error) {
	spec := b.launch.Machine
	spec.RunDir, spec.Restore = filepath.Join(b.work, "f"+strconv.Itoa(i)), b.launch.Template
	if err := os.MkdirAll(spec.RunDir, 0o700); err != nil {
		return nil, err
	}
	spec.Disks = slices.Clone(spec.Disks)
	for j, disk := range spec.Disks {
		if disk.ReadOnly {
			continue
		}
		own := filepath.Join(spec.RunDir, "disk.ext4")
		if _, err := diskcopy.Copy(ctx, filepath.Join(filepath.Dir(spec.Restore.Memory), filepath.Base(disk.Path)), own); err != nil {
			return nil, err
		}
		spec.Disks[j].Path = own
	}
	m, err := b.driver.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	stop = func() {
		_ = m.Signal(9)
		<-m.Done()
		os.RemoveAll(spec.RunDir)
	}
	conn, err := m.ConnectAgent(ctx)
	if err == nil {
		var mux *guest.Mux
		if mux, err = guest.ConnectMux(ctx, conn); err == nil {
			defer mux.Close()
			err = b.firstCommand(ctx, guest.NewClient(mux))
		}
	}
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// firstCommand wakes the guest and runs true in it.
func (b *bench) firstCommand(ctx context.Context, c *guest.Client) error {
	wake := agentwire.Wake{Entropy: make([]byte, 64), UnixNano: time.Now().UnixNano(), Identity: &agentwire.Identity{
		Hostname: "floor", MachineID: strings.Repeat("0", 31) + "1", BootID: "00000000-0000-4000-8000-000000000001", Network: b.launch.Guest.Network,
	}}
	rand.Read(wake.Entropy)
	if err := c.Wake(ctx, wake); err != nil {
		return err
	}
	p, err := c.Exec(ctx, agentwire.ExecStart{Argv: []string{"true"}})
	if err != nil {
		return err
	}
	defer p.Close()
	for {
		e, err := p.Next()
		if err != nil || e.Exited != nil {
			return err
		}
	}
}

// warmStart compares starts from a template with the floor and with cold ones, taken in turns so that the host's noise hits
// all of them.
func (b *bench) warmStart(ctx context.Context, n int) error {
	if !b.wanted("warm start") {
		return nil
	}
	if err := b.warm(ctx); err != nil {
		return err
	}
	floor := &series{Name: "floor: restore, wake, true"}
	warm, cold := &series{Name: "vm run --rm -- true, warm"}, &series{Name: "vm run --rm -- true, cold (again)"}
	for i := range n {
		if b.launch.Prepared {
			var stop func()
			if err := b.sample(floor, func() (err error) { stop, err = b.floor(ctx, i); return err }); err != nil {
				return err
			}
			stop()
		}
		if err := b.sample(warm, func() error { return b.runTrue(ctx) }); err != nil {
			return err
		}
		if err := b.sample(cold, func() error { return b.runTrue(ctx, "--cold") }); err != nil {
			return err
		}
	}
	b.add(warm, cold)
	b.figure("warm start (p50)", "ms", warm.P50, 450)
	b.figure("warm start against cold (p50)", "x", warm.P50/cold.P50, 0.2)
	if len(floor.Millis) > 0 {
		b.add(floor)
		b.figure("warm start against the floor (p50)", "x", warm.P50/floor.P50, 1.5)
	}
	return nil
}

// sample measures do once.
func (b *bench) sample(s *series, do func() error) error {
	one, err := b.time(s.Name, 1, do)
	if err == nil {
		s.Millis = append(s.Millis, one.Millis...)
	}
	return err
}

func (b *bench) runTrue(ctx context.Context, flags ...string) error {
	args := slices.Concat([]string{"vm", "run", "--rm"}, flags, []string{"--", "true"})
	_, err := b.command(ctx, args...)
	return err
}

// pooled measures starts that find a VM in the pool. The setting is put back afterwards.
func (b *bench) pooled(ctx context.Context, n int) error {
	if !b.wanted("pool") {
		return nil
	}
	before, err := b.setting(ctx, "vmm.warm_pool")
	if err != nil {
		return err
	}
	set := func(ctx context.Context, value string) error {
		if _, err := b.command(ctx, "config", "set", "vmm.warm_pool", value); err != nil {
			return err
		}
		_, err := b.command(ctx, "daemon", "stop")
		return err
	}
	if err := set(ctx, "1"); err != nil {
		return err
	}
	defer func() { _ = set(context.WithoutCancel(ctx), before) }()
	s := &series{Name: "vm run --rm -- true, pool"}
	for range n {
		if _, err := b.command(ctx, "vm", "list"); err != nil { // starts the daemon
			return err
		}
		if err := b.poolReady(ctx); err != nil {
			return err
		}
		if err := b.sample(s, func() error { return b.runTrue(ctx) }); err != nil {
			return err
		}
	}
	b.add(s)
	b.figure("start with the pool (p50)", "ms", s.P50, 200)
	return nil
}

func (b *bench) setting(ctx context.Context, key string) (string, error) {
	text, err := b.command(ctx, "config", "show", "--format", "json")
	if err != nil {
		return "", err
	}
	var all []struct{ Key, Value string }
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return "", fmt.Errorf("config show: %w", err)
	}
	for _, one := range all {
		if one.Key == key {
			return one.Value, nil
		}
	}
	return "", fmt.Errorf("config show: there is no %s", key)
}

// poolReady waits until a VM can be taken.
func (b *bench) poolReady(ctx context.Context) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		text, err := b.command(ctx, "daemon", "status", "--format", "json")
		if err != nil {
			return err
		}
		var status struct {
			Ready int `json:"pool_ready"`
		}
		if err := json.Unmarshal([]byte(text), &status); err != nil {
			return err
		}
		if status.Ready > 0 {
			return sleep(ctx, 200*time.Millisecond)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("the pool is not filled within %s", patience)
}
