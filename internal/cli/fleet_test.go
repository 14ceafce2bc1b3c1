package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

// wide returns what commands depend on when stdout is as wide as a terminal of so many columns.
func wide(t *testing.T, width int, env string) (d *Deps, out *bytes.Buffer) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	out = new(bytes.Buffer)
	getenv := func(name string) string {
		if name == "LANG" {
			return env
		}
		return ""
	}
	return &Deps{
		Term:      term.New(term.Config{Stdin: null, Stdout: out, Stderr: new(bytes.Buffer), Getenv: getenv, Width: width}),
		LookupEnv: func(string) (string, bool) { return "", false },
	}, out
}

// aMoment is when these tests take place.
func aMoment() time.Time { return time.UnixMilli(1_800_000_000_000) }

// fiftyVMs are of every kind that makes a table hard: long names, all states, labels, guests that lie.
func fiftyVMs() (vms []*bangerv1.VM) {
	states := []string{"running", "stopped", "paused", "failed", "created", "starting", "suspended"}
	now := aMoment().UnixMilli()
	for i := range 50 {
		m := &bangerv1.VM{
			Id: fmt.Sprintf("%012x", i+1), State: states[i%len(states)], DiskUsedBytes: uint64(i) * 137 << 20,
			Spec: &bangerv1.VMSpec{
				Name: fmt.Sprintf("sandbox-%d", i+1), Image: "debian-bookworm", Cpus: uint32(1 + i%8),
				MemoryBytes: uint64(1+i%16) << 29, DiskBytes: 10 << 30,
			},
		}
		if m.GetState() == "running" || m.GetState() == "paused" {
			m.VmmPid, m.StartedAtMs = int32(1000+31*i), now-int64(i)*3_700_000
			m.LastActiveMs = now - int64(i)*61_000
		}
		switch {
		case i%10 == 3:
			m.Spec.Labels = map[string]string{"team": "web", "owner": "someone-with-a-long-name", "draft": ""}
		case i%10 == 7:
			m.Spec.Description = "where the reviews of the second team are tried out before they are merged into what is released"
		}
		vms = append(vms, m)
	}
	vms[0].Spec.Name = strings.Repeat("a", 63)
	vms[7].OpenSessions = 2
	return vms
}

// golden compares text with a file of testdata, or writes it with -update.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s (go test -update writes it anew):\n%s", path, diff)
	}
}

// fits fails the test for each line that is wider than a terminal of so many columns.
func fits(t *testing.T, text string, width int) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("a line has %d characters at %d columns: %q", n, width, line)
		}
	}
}

func TestListOfFifty(t *testing.T) {
	for _, width := range []int{60, 80, 120, 200} {
		d, out := wide(t, width, "C.UTF-8")
		if err := d.Term.Table(vmTable(fiftyVMs(), aMoment())); err != nil {
			t.Fatal(err)
		}
		fits(t, out.String(), width)
		golden(t, fmt.Sprintf("list_%d.golden", width), out.String())
	}
	d, out := wide(t, 0, "")
	if err := d.Term.Table(vmTable(fiftyVMs(), aMoment())); err != nil {
		t.Fatal(err)
	}
	if head, _, _ := strings.Cut(out.String(), "\n"); strings.Join(strings.Fields(head), " ") != "NAME STATE IMAGE CPUS MEMORY UPTIME PID" ||
		strings.Contains(out.String(), "…") || !strings.Contains(out.String(), strings.Repeat("a", 63)) {
		t.Errorf("a pipe gets\n%s", out)
	}
}

// fiftyMeters are fifty VMs that have been watched for a while.
func fiftyMeters() *statsWatch {
	w := &statsWatch{opts: statsOptions{interval: time.Second}, meters: map[string]*meter{}}
	for i, m := range fiftyVMs() {
		mt := &meter{vm: m, running: true}
		s := &bangerv1.Sample{AtMs: aMoment().UnixMilli() - 40_000, GuestMemoryTotalBytes: m.GetSpec().GetMemoryBytes(), GuestDiskTotalBytes: 10 << 30}
		for step := range 40 {
			next := &bangerv1.Sample{
				AtMs: s.GetAtMs() + 1000, GuestMemoryTotalBytes: s.GetGuestMemoryTotalBytes(), GuestDiskTotalBytes: s.GetGuestDiskTotalBytes(),
				GuestCpuMs: s.GetGuestCpuMs() + uint64((step*i*37)%(1000*int(m.GetSpec().GetCpus()))), HostCpuMs: s.GetHostCpuMs() + uint64(20*i),
				HostRssBytes: uint64(100+i) << 20, DiskUsedBytes: uint64(i) * 137 << 20,
				GuestMemoryUsedBytes: s.GetGuestMemoryTotalBytes() * uint64(1+step) / 50, GuestDiskUsedBytes: uint64(300+step*i) << 20,
				Load1: float64(i) / 7, ReadBytes: s.GetReadBytes() + uint64(i)<<16, WrittenBytes: s.GetWrittenBytes() + uint64(i)<<20,
				ReceivedBytes: s.GetReceivedBytes() + uint64(i*i)<<12, SentBytes: s.GetSentBytes() + uint64(i)<<6, Processes: int32(20 + i),
			}
			mt.samples = append(mt.samples, next)
			s = next
		}
		switch m.GetState() {
		case "running":
		case "paused":
			for _, s := range mt.samples { // a guest that stands still answers nothing
				s.GuestMemoryTotalBytes, s.GuestDiskTotalBytes, s.Load1, s.Processes = 0, 0, 0, 0
			}
		default:
			mt.samples = nil
		}
		w.meters[m.GetId()] = mt
		w.order = append(w.order, m.GetId())
	}
	return w
}

func TestStatsScreenOfFifty(t *testing.T) {
	for _, tc := range []struct {
		name        string
		width, rows int
		locale      string
	}{
		{"80", 80, 24, "C.UTF-8"}, {"80_ascii", 80, 60, "C"}, {"120", 120, 60, "C.UTF-8"}, {"200", 200, 60, "C.UTF-8"}, {"40", 40, 10, "C.UTF-8"},
	} {
		d, _ := wide(t, tc.width, tc.locale)
		lines := fiftyMeters().lines(d.Term, tc.rows, time.Date(2027, 1, 15, 8, 0, 0, 0, time.UTC))
		if len(lines) > tc.rows {
			t.Errorf("%s: %d lines for %d rows", tc.name, len(lines), tc.rows)
		}
		text := strings.Join(lines, "\n") + "\n"
		fits(t, text, tc.width)
		golden(t, "stats_"+tc.name+".golden", text)
	}
}

func TestStatsOfFiftyOnce(t *testing.T) {
	w := fiftyMeters()
	var usages []usage
	for _, id := range w.order {
		usages = append(usages, usageOf(w.meters[id].vm, w.meters[id].samples))
	}
	for _, width := range []int{80, 200} {
		d, out := wide(t, width, "C.UTF-8")
		if err := d.answerStats(usages, nil); err != nil {
			t.Fatal(err)
		}
		fits(t, out.String(), width)
		golden(t, fmt.Sprintf("stats_once_%d.golden", width), out.String())
	}
}

// The names of a catalog are there to be typed again: other columns go first.
func TestCatalogKeepsNames(t *testing.T) {
	d, out := wide(t, 80, "C.UTF-8")
	names := []string{"debian-bookworm-backports", "debian-bookworm-backports-arm64"}
	var entries []*bangerv1.CatalogEntry
	for _, name := range names {
		entries = append(entries, &bangerv1.CatalogEntry{Name: name, Source: "debian:bookworm-backports", Description: strings.Repeat("long ", 20)})
	}
	if err := d.answerCatalog(entries); err != nil {
		t.Fatal(err)
	}
	fits(t, out.String(), 80)
	for _, name := range names {
		if !strings.Contains(out.String(), name+" ") {
			t.Errorf("no %s in\n%s", name, out)
		}
	}
}
