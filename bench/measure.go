package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"banger/internal/ext4"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qemu"
	"banger/internal/vmdir"
)

// series is one thing measured several times.
type series struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit,omitempty"` // milliseconds unless it says something else
	Millis []float64 `json:"millis"`
	Min    float64   `json:"min"`
	P50    float64   `json:"p50"`
	P99    float64   `json:"p99"`
	Max    float64   `json:"max"`
}

func (s *series) summarise() {
	sorted := slices.Clone(s.Millis)
	slices.Sort(sorted)
	at := func(q float64) float64 { return sorted[int(math.Ceil(q*float64(len(sorted))))-1] }
	s.Min, s.P50, s.P99, s.Max = sorted[0], at(0.5), at(0.99), sorted[len(sorted)-1]
}

// bench measures one binary with the user's own image and kernel.
type bench struct {
	banger string
	only   string
	work   string            // temporary directory, short: sockets are in it
	driver hypervisor.Driver // the same that banger uses
	spec   hypervisor.Spec   // a real VM's, taken from its directory
	launch vmdir.Launch      // of one that was started from a template
	report report
}

const benchVM = "banger-bench"

// prepare makes the VM whose launch file says how banger starts QEMU, and that exec is measured on.
func (b *bench) prepare(ctx context.Context) (err error) {
	if b.work, err = os.MkdirTemp("", "bb"); err != nil {
		return err
	}
	if b.report.Host.Version, err = b.command(ctx, "version"); err != nil {
		return err
	}
	b.report.Host.Version, _, _ = strings.Cut(strings.TrimSpace(b.report.Host.Version), "\n")
	_, _ = b.command(ctx, "vm", "rm", "--force", benchVM) // of a bench that was killed
	if _, err := b.command(ctx, "vm", "run", "--detach", "--name", benchVM); err != nil {
		return err
	}
	shown, err := b.show(ctx, benchVM)
	if err != nil {
		return err
	}
	launch, err := vmdir.Dir(shown.Dir).ReadLaunch()
	if err != nil {
		return err
	}
	b.spec, b.report.Host.Accelerator = launch.Machine, shown.Accelerator
	b.driver = qemu.New(qemu.Options{CacheDir: launch.Paths.Cache}) // the template was made with the counter's rate that is there
	return nil
}

func (b *bench) cleanUp() {
	_, _ = b.command(context.Background(), "vm", "rm", "--force", benchVM)
	os.RemoveAll(b.work)
}

// raw starts QEMU by hand and returns when the agent has answered; stop ends it.
func (b *bench) raw(ctx context.Context, i int) (stop func(), err error) {
	spec := b.spec
	spec.RunDir = filepath.Join(b.work, fmt.Sprint(i))
	if err := os.MkdirAll(spec.RunDir, 0o700); err != nil {
		return nil, err
	}
	spec.Disks = slices.Clone(spec.Disks)
	for j, disk := range spec.Disks {
		if !disk.ReadOnly {
			spec.Disks[j].Path = filepath.Join(spec.RunDir, "disk.ext4")
			if err := ext4.CopyFormatted(ctx, filepath.Join(b.work, "disks"), 1<<30, spec.Disks[j].Path); err != nil {
				return nil, err
			}
		}
	}
	machine, err := b.driver.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	stop = func() {
		_ = machine.Signal(9)
		<-machine.Done()
		os.RemoveAll(spec.RunDir)
	}
	conn, err := machine.ConnectAgent(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	mux, err := guest.ConnectMux(ctx, conn)
	if err != nil {
		stop()
		return nil, err
	}
	_, err = guest.NewClient(mux).Hello(ctx)
	mux.Close()
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// time measures do n times under name; after runs outside the measurement. It returns nil when name is not wanted.
func (b *bench) time(name string, n int, do func() error) (*series, error) {
	s := &series{Name: name}
	for range n {
		start := time.Now()
		if err := do(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		s.Millis = append(s.Millis, float64(time.Since(start).Microseconds())/1000)
	}
	return s, nil
}

func (b *bench) add(all ...*series) {
	for _, s := range all {
		s.summarise()
		b.report.Series = append(b.report.Series, s)
	}
}

func (b *bench) figure(name, unit string, value, atMost float64) {
	b.report.Ratios = append(b.report.Ratios, ratio{Name: name, Value: value, Unit: unit, AtMost: atMost})
}

func (b *bench) wanted(name string) bool { return strings.Contains(name, b.only) }

// coldStart pairs each start with a raw one, so that the host's noise hits both.
func (b *bench) coldStart(ctx context.Context, n int) error {
	if !b.wanted("cold start") {
		return nil
	}
	n = min(n, 7) // warm starts are paired with cold ones once more
	floor, cold := &series{Name: "raw floor: QEMU to agent"}, &series{Name: "vm run --rm -- true, cold"}
	for i := range n {
		var stop func()
		one, err := b.time(floor.Name, 1, func() (err error) { stop, err = b.raw(ctx, i); return err })
		if err != nil {
			return err
		}
		stop()
		two, err := b.time(cold.Name, 1, func() error {
			return b.runTrue(ctx, "--cold")
		})
		if err != nil {
			return err
		}
		floor.Millis, cold.Millis = append(floor.Millis, one.Millis...), append(cold.Millis, two.Millis...)
	}
	b.add(floor, cold)
	b.figure("cold start against the raw floor (p50)", "x", cold.P50/floor.P50, 1.5)
	return nil
}

func (b *bench) execRoundTrip(ctx context.Context, n int) error {
	if !b.wanted("exec") {
		return nil
	}
	s, err := b.time("vm exec NAME -- true", 5*n, func() error {
		_, err := b.command(ctx, "vm", "exec", benchVM, "--", "true")
		return err
	})
	if err != nil {
		return err
	}
	b.add(s)
	b.figure("exec of true, whole command (p50)", "ms", s.P50, 25)
	return nil
}

func (b *bench) cliStart(ctx context.Context, n int) error {
	for _, c := range []struct {
		name string
		args []string
		goal float64
	}{
		{"version", []string{"version"}, 50},
		{"vm list", []string{"vm", "list"}, 60},
	} {
		if !b.wanted(c.name) {
			continue
		}
		s, err := b.time(c.name, 5*n, func() error { _, err := b.command(ctx, c.args...); return err })
		if err != nil {
			return err
		}
		b.add(s)
		b.figure(c.name+" (p50)", "ms", s.P50, c.goal)
	}
	return nil
}

const crowd = 10

// tenAtOnce compares ten creates at once with ten raw QEMUs started at once.
func (b *bench) tenAtOnce(ctx context.Context, n int) error {
	if !b.wanted("ten at once") {
		return nil
	}
	rounds := max(1, min(n, 6)/3)
	floor, all := &series{Name: "ten raw QEMUs at once"}, &series{Name: "ten vm create --start at once"}
	for range rounds {
		stops := make([]func(), crowd)
		one, err := b.time(floor.Name, 1, func() error {
			return together(func(i int) (err error) { stops[i], err = b.raw(ctx, i); return err })
		})
		for _, stop := range stops {
			if stop != nil {
				stop()
			}
		}
		if err != nil {
			return err
		}
		two, err := b.time(all.Name, 1, func() error {
			return together(func(i int) error {
				_, err := b.command(ctx, "vm", "run", "--detach", "--name", fmt.Sprintf("%s-%d", benchVM, i))
				return err
			})
		})
		for i := range crowd {
			_, _ = b.command(context.WithoutCancel(ctx), "vm", "rm", "--force", fmt.Sprintf("%s-%d", benchVM, i))
		}
		if err != nil {
			return err
		}
		floor.Millis, all.Millis = append(floor.Millis, one.Millis...), append(all.Millis, two.Millis...)
	}
	b.add(floor, all)
	b.figure("ten at once against ten raw ones (p50)", "x", all.P50/floor.P50, 2.5)
	return nil
}

func together(do func(i int) error) error {
	var group errgroup.Group
	for i := range crowd {
		group.Go(func() error { return do(i) })
	}
	return group.Wait()
}
