// Command bench measures banger as ratios in one run: against the raw floor (the same QEMU, kernel and initramfs
// started by hand until the agent answers) and against itself. It prints a table and writes JSON.
//
// Timing here decides nothing but the table: goals are shown beside the figures, and a missed one is marked.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"banger/internal/atomicfile"
)

func main() {
	banger := flag.String("banger", "bin/banger", "the binary to measure")
	out := flag.String("out", "bench/out", "directory for the JSON")
	n := flag.Int("n", 20, "warm starts (the other figures scale with it)")
	only := flag.String("only", "", "run only the measurements whose name has this in it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *banger, *out, *only, *n); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// report is what is written as JSON.
type report struct {
	At     time.Time `json:"at"`
	Host   host      `json:"host"`
	Series []*series `json:"series"`
	Ratios []ratio   `json:"ratios"`
}

type host struct {
	CPUs        int    `json:"cpus"`
	Load        string `json:"load"` // of the last minute, before the bench
	Accelerator string `json:"accelerator"`
	Version     string `json:"banger"`
}

// ratio is one figure, usually with a goal.
type ratio struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`    // "x", "ms" or "MB"
	AtMost float64 `json:"at_most"` // 0: no goal
}

func run(ctx context.Context, banger, out, only string, n int) error {
	path, err := filepath.Abs(banger)
	if err != nil {
		return err
	}
	b := &bench{banger: path, only: only, report: report{At: time.Now(), Host: host{CPUs: runtime.NumCPU(), Load: load()}}}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer b.cleanUp()
	for _, step := range []func(context.Context, int) error{b.warmStart, b.crowds, b.suspended,
		b.forked, b.snapshots, b.costs, b.coldStart, b.execRoundTrip, b.cliStart, b.tenAtOnce, b.pull, b.pooled} {
		if err := step(ctx, n); err != nil {
			return err
		}
	}
	b.report.print(os.Stdout)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	file := filepath.Join(out, b.report.At.UTC().Format("20060102T150405Z")+".json")
	data, err := json.MarshalIndent(b.report, "", "  ")
	if err != nil {
		return err
	}
	fmt.Println("\nwritten:", file)
	return atomicfile.Write(file, append(data, '\n'), 0o644)
}

// load is how busy the host was before: figures of a busy one are worth little.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// command runs banger and returns its standard output. A failure carries its standard error.
func (b *bench) command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, b.banger, args...)
	out, err := cmd.Output()
	if err != nil {
		detail := ""
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			detail = ": " + strings.TrimSpace(string(exit.Stderr))
		}
		return "", fmt.Errorf("banger %s: %w%s", strings.Join(args, " "), err, detail)
	}
	return string(out), nil
}

func (r report) print(w io.Writer) {
	fmt.Fprintf(w, "banger %s, %d cpus, load %s, %s\n\n", r.Host.Version, r.Host.CPUs, r.Host.Load, r.Host.Accelerator)
	fmt.Fprintf(w, "%-34s %5s %10s %10s %10s %10s\n", "milliseconds", "n", "min", "p50", "p99", "max")
	for _, s := range r.Series {
		fmt.Fprintf(w, "%-34s %5d %10.1f %10.1f %10.1f %10.1f\n", s.Name, len(s.Millis), s.Min, s.P50, s.P99, s.Max)
	}
	fmt.Fprintf(w, "\n%-50s %10s %10s\n", "figure", "measured", "goal")
	for _, ratio := range r.Ratios {
		if ratio.AtMost == 0 {
			fmt.Fprintf(w, "%-50s %7.2f %s\n", ratio.Name, ratio.Value, ratio.Unit)
			continue
		}
		mark := ""
		if ratio.Value > ratio.AtMost {
			mark = "  missed"
		}
		fmt.Fprintf(w, "%-50s %7.2f %-2s %7.2f %-2s%s\n", ratio.Name, ratio.Value, ratio.Unit, ratio.AtMost, ratio.Unit, mark)
	}
}
