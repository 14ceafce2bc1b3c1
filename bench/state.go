package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	atOnce   = 20
	inARow   = 100
	bigCrowd = 3 // rounds of atOnce
)

// crowds are 20 starts at once and 100 in a row: every one has to come up, and none much later than the others.
func (b *bench) crowds(ctx context.Context, n int) error {
	if !b.wanted("crowd") {
		return nil
	}
	once := &series{Name: "20 vm run --rm -- true at once, each"}
	for range max(1, min(bigCrowd, n/5)) {
		took := make([]float64, atOnce)
		var group errgroup.Group
		for i := range atOnce {
			group.Go(func() error {
				one, err := b.time(once.Name, 1, func() error { return b.runTrue(ctx) })
				if err == nil {
					took[i] = one.Millis[0]
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		once.Millis = append(once.Millis, took...)
	}
	row := &series{Name: "100 vm run --rm -- true in a row"}
	for range min(inARow, 5*n) {
		if err := b.sample(row, func() error { return b.runTrue(ctx) }); err != nil {
			return err
		}
	}
	b.add(once, row)
	b.figure("20 at once: p99 against p50", "x", once.P99/once.P50, 3)
	b.figure("100 in a row: p99 against p50", "x", row.P99/row.P50, 3)
	return nil
}

// suspended measures suspend and the first command after it, which resumes a VM of 512 MiB with 100 MiB in use.
func (b *bench) suspended(ctx context.Context, n int) error {
	if !b.wanted("suspend") {
		return nil
	}
	const name = benchVM + "-s"
	if err := b.busyVM(ctx, name); err != nil {
		return err
	}
	defer func() { _, _ = b.command(context.WithoutCancel(ctx), "vm", "rm", "--force", name) }()
	down, up, both := &series{Name: "vm suspend, 100 MiB in use"}, &series{Name: "vm exec -- true of a suspended vm"}, &series{Name: "suspend, resume, true"}
	for range n {
		if err := b.sample(down, func() error { _, err := b.command(ctx, "vm", "suspend", name); return err }); err != nil {
			return err
		}
		if err := b.sample(up, func() error { _, err := b.command(ctx, "vm", "exec", name, "--", "true"); return err }); err != nil {
			return err
		}
		both.Millis = append(both.Millis, down.Millis[len(down.Millis)-1]+up.Millis[len(up.Millis)-1])
	}
	b.add(down, up, both)
	b.figure("suspend, resume and true (p50)", "ms", both.P50, 1500)
	return nil
}

// busyVM makes a VM of 512 MiB that uses 100 MiB of them.
func (b *bench) busyVM(ctx context.Context, name string) error {
	_, _ = b.command(ctx, "vm", "rm", "--force", name) // of a bench that was killed
	if _, err := b.command(ctx, "vm", "run", "--detach", "--name", name, "--memory", "512M"); err != nil {
		return err
	}
	_, err := b.command(ctx, "vm", "exec", name, "--", "sh", "-c", "head -c 100M /dev/urandom > /dev/shm/used")
	return err
}

// has reports whether the binary has a command.
func (b *bench) has(ctx context.Context, words ...string) bool {
	_, err := b.command(ctx, append(words, "--help")...)
	return err == nil
}

// forked measures forks of an idle VM of 512 MiB: how long it stands still, and ten against one.
func (b *bench) forked(ctx context.Context, n int) error {
	if !b.wanted("fork") || !b.has(ctx, "vm", "fork") {
		return nil
	}
	const name = benchVM + "-f"
	_, _ = b.command(ctx, "vm", "rm", "--force", name)
	if _, err := b.command(ctx, "vm", "run", "--detach", "--name", name, "--memory", "512M"); err != nil {
		return err
	}
	defer func() { _, _ = b.command(context.WithoutCancel(ctx), "vm", "rm", "--force", name) }()
	pause, one, ten := &series{Name: "vm fork: the source stands still"}, &series{Name: "one fork to its first command"}, &series{Name: "ten forks to their first commands"}
	for range n {
		still, err := b.forkOnce(ctx, name, one, 1)
		if err != nil {
			return err
		}
		if still >= 0 {
			pause.Millis = append(pause.Millis, still)
		}
	}
	for range max(1, n/5) {
		if _, err := b.forkOnce(ctx, name, ten, crowd); err != nil {
			return err
		}
	}
	b.add(one, ten)
	if len(pause.Millis) > 0 {
		b.add(pause)
		b.figure("fork of an idle 512 MiB vm: pause (p50)", "ms", pause.P50, 20)
	}
	b.figure("ten forks against one (p50)", "x", ten.P50/one.P50, 3)
	return nil
}

// forkOnce forks a VM into so many and runs a command in each. It returns how many milliseconds the source stood still, -1
// when that is not told.
func (b *bench) forkOnce(ctx context.Context, name string, s *series, n int) (still float64, err error) {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", name, i)
	}
	defer func() {
		for _, name := range names {
			_, _ = b.command(context.WithoutCancel(ctx), "vm", "rm", "--force", name)
		}
	}()
	var text string
	err = b.sample(s, func() (err error) {
		text, err = b.command(ctx, "vm", "fork", "--format", "json", "--names", strings.Join(names, ","), name)
		if err != nil {
			return err
		}
		var group errgroup.Group
		for _, name := range names {
			group.Go(func() error { _, err := b.command(ctx, "vm", "exec", name, "--", "true"); return err })
		}
		return group.Wait()
	})
	return stillIn(text), err
}

// stillIn finds in JSON how long a machine stood still.
func stillIn(text string) float64 {
	var any map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &any) != nil {
		return -1
	}
	for key, unit := range map[string]float64{"paused_us": 1e-3, "still_us": 1e-3, "pause_us": 1e-3, "paused_ms": 1, "still_ms": 1, "pause_ms": 1} {
		if v, err := strconv.ParseFloat(string(any[key]), 64); err == nil {
			return v * unit
		}
	}
	return -1
}

// snapshots measures a snapshot of a running VM with 100 MiB in use, and the way back to it.
func (b *bench) snapshots(ctx context.Context, n int) error {
	if !b.wanted("snapshot") || !b.has(ctx, "vm", "snapshot") || !b.has(ctx, "vm", "restore") {
		return nil
	}
	const name = benchVM + "-n"
	if err := b.busyVM(ctx, name); err != nil {
		return err
	}
	defer func() { _, _ = b.command(context.WithoutCancel(ctx), "vm", "rm", "--force", name) }()
	take, back := &series{Name: "vm snapshot, 100 MiB in use"}, &series{Name: "vm restore and true"}
	for i := range n {
		snap := fmt.Sprintf("s%d", i)
		if err := b.sample(take, func() error { _, err := b.command(ctx, "vm", "snapshot", name, snap); return err }); err != nil {
			return err
		}
		err := b.sample(back, func() error {
			if _, err := b.command(ctx, "vm", "restore", "--yes", name, snap); err != nil {
				return err
			}
			_, err := b.command(ctx, "vm", "exec", name, "--", "true")
			return err
		})
		if err != nil {
			return err
		}
		_, _ = b.command(ctx, "snapshot", "rm", name, snap)
	}
	b.add(take, back)
	return nil
}

// costs are memory and disk of an idle VM that has run one command.
func (b *bench) costs(ctx context.Context, n int) error {
	if !b.wanted("cost") {
		return nil
	}
	const name = benchVM + "-c"
	vmm, translated, supervisor, disk := &series{Name: "VMM and guest, private MB", Unit: "MB"}, &series{Name: "TCG's translated code, MB", Unit: "MB"},
		&series{Name: "supervisor, private MB", Unit: "MB"}, &series{Name: "disk of a new vm, MB", Unit: "MB"}
	for range max(1, n/4) {
		err := func() error {
			defer func() { _, _ = b.command(context.WithoutCancel(ctx), "vm", "rm", "--force", name) }()
			if _, err := b.command(ctx, "vm", "run", "--detach", "--name", name); err != nil {
				return err
			}
			if _, err := b.command(ctx, "vm", "exec", name, "--", "true"); err != nil {
				return err
			}
			if err := sleep(ctx, 2*time.Second); err != nil {
				return err
			}
			s, err := b.show(ctx, name)
			if err != nil {
				return err
			}
			all, code, err := private(s.VMMPID)
			if err != nil {
				return err
			}
			own, _, err := private(s.SupervisorPID)
			if err != nil {
				return err
			}
			vmm.Millis, translated.Millis = append(vmm.Millis, all-code), append(translated.Millis, code)
			supervisor.Millis, disk.Millis = append(supervisor.Millis, own), append(disk.Millis, usage(s.Dir))
			return nil
		}()
		if err != nil {
			return err
		}
	}
	b.add(vmm, translated, supervisor, disk)
	b.figure("private memory of guest and VMM, without TCG's buffer", "MB", vmm.P50, 45*1.048576)
	b.figure("disk of a new vm", "MB", disk.P50, 6*1.048576)
	return nil
}

// private returns the private memory of a process in MB, and how much of it is code that it has made itself.
func private(pid int) (all, code float64, err error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps"))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	lines, made := bufio.NewScanner(f), false
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 5 && strings.Contains(fields[0], "-") && !strings.HasSuffix(fields[0], ":") {
			made = strings.HasPrefix(fields[1], "rwx")
			continue
		}
		if len(fields) < 2 || !strings.HasPrefix(fields[0], "Private_") {
			continue
		}
		// Clean pages of a file that only this process has mapped at the moment are the template's or the program's.
		if fields[0] != "Private_Dirty:" {
			continue
		}
		kilobytes, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return 0, 0, err
		}
		all += kilobytes * 1024 / 1e6
		if made {
			code += kilobytes * 1024 / 1e6
		}
	}
	return all, code, lines.Err()
}

// usage is what a directory takes of the disk in MB.
func usage(dir string) (mb float64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				mb += float64(st.Blocks) * 512 / 1e6
			}
		}
		return nil
	})
	return mb
}
