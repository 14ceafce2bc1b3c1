package cli

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// usage is what a VM does: its latest sample, and rates from the one before. A rate that is not known is NaN.
type usage struct {
	vm     *bangerv1.VM
	now    *bangerv1.Sample
	cpu    float64 // percent of one CPU, as the guest counts
	host   float64 // percent of one CPU of the host, VMM and supervisor
	rx, tx float64 // bytes per second
	rd, wr float64
}

// usageOf compares the last two samples. The numbers of a guest need not make sense: counters that went back have no rate.
func usageOf(m *bangerv1.VM, samples []*bangerv1.Sample) usage {
	u := usage{vm: m, now: new(bangerv1.Sample)}
	was := u.now
	if n := len(samples); n > 0 {
		u.now = samples[n-1]
		was = u.now
		if n > 1 {
			was = samples[n-2]
		}
	}
	seconds := float64(u.now.GetAtMs()-was.GetAtMs()) / 1000
	rate := func(counter func(*bangerv1.Sample) uint64) float64 {
		from, to := counter(was), counter(u.now)
		if seconds <= 0 || to < from {
			return math.NaN()
		}
		return float64(to-from) / seconds
	}
	u.cpu = rate((*bangerv1.Sample).GetGuestCpuMs) / 10
	u.host = rate((*bangerv1.Sample).GetHostCpuMs) / 10
	u.rx, u.tx = rate((*bangerv1.Sample).GetReceivedBytes), rate((*bangerv1.Sample).GetSentBytes)
	u.rd, u.wr = rate((*bangerv1.Sample).GetReadBytes), rate((*bangerv1.Sample).GetWrittenBytes)
	return u
}

// statsView is the JSON form of a VM's usage.
type statsView struct {
	ID               string     `json:"id"`
	Name             string     `json:"name"`
	State            string     `json:"state"`
	At               *time.Time `json:"at,omitempty"`
	CPUs             uint32     `json:"cpus"`
	CPUPercent       *float64   `json:"cpu_percent,omitempty"`
	HostCPUPercent   *float64   `json:"host_cpu_percent,omitempty"`
	CPUMillis        uint64     `json:"cpu_ms"`
	HostCPUMillis    uint64     `json:"host_cpu_ms"`
	HostRSSBytes     uint64     `json:"host_rss_bytes"`
	MemoryTotalBytes uint64     `json:"memory_total_bytes"`
	MemoryUsedBytes  uint64     `json:"memory_used_bytes"`
	Load1            float64    `json:"load1"`
	Processes        int32      `json:"processes"`
	DiskTotalBytes   uint64     `json:"disk_total_bytes"`
	DiskUsedBytes    uint64     `json:"disk_used_bytes"`
	DiskHostBytes    uint64     `json:"disk_used_on_host_bytes"`
	ReadBytes        uint64     `json:"read_bytes"`
	WrittenBytes     uint64     `json:"written_bytes"`
	ReceivedBytes    uint64     `json:"received_bytes"`
	SentBytes        uint64     `json:"sent_bytes"`
	ReadRate         *float64   `json:"read_bytes_per_second,omitempty"`
	WriteRate        *float64   `json:"written_bytes_per_second,omitempty"`
	ReceiveRate      *float64   `json:"received_bytes_per_second,omitempty"`
	SendRate         *float64   `json:"sent_bytes_per_second,omitempty"`
}

func (u usage) view() statsView {
	s, load := u.now, u.now.GetLoad1()
	if math.IsNaN(load) || math.IsInf(load, 0) { // JSON has no such numbers
		load = 0
	}
	return statsView{
		ID: u.vm.GetId(), Name: u.vm.GetSpec().GetName(), State: u.vm.GetState(), At: at(s.GetAtMs()), CPUs: u.vm.GetSpec().GetCpus(),
		CPUPercent: known(u.cpu), HostCPUPercent: known(u.host), CPUMillis: s.GetGuestCpuMs(), HostCPUMillis: s.GetHostCpuMs(),
		HostRSSBytes: s.GetHostRssBytes(), MemoryTotalBytes: s.GetGuestMemoryTotalBytes(), MemoryUsedBytes: s.GetGuestMemoryUsedBytes(),
		Load1: load, Processes: s.GetProcesses(), DiskTotalBytes: s.GetGuestDiskTotalBytes(), DiskUsedBytes: s.GetGuestDiskUsedBytes(),
		DiskHostBytes: s.GetDiskUsedBytes(), ReadBytes: s.GetReadBytes(), WrittenBytes: s.GetWrittenBytes(),
		ReceivedBytes: s.GetReceivedBytes(), SentBytes: s.GetSentBytes(),
		ReadRate: known(u.rd), WriteRate: known(u.wr), ReceiveRate: known(u.rx), SendRate: known(u.tx),
	}
}

// known is a number with one decimal, nil for NaN.
func known(f float64) *float64 {
	if math.IsNaN(f) {
		return nil
	}
	f = math.Round(10*f) / 10
	return &f
}

// usageColumns are those of the table of stats; what is extra takes a wide terminal.
func usageColumns() []term.Column {
	return []term.Column{
		{Title: "NAME", Least: 12},
		{Title: "CPU", Right: true, Fixed: true, Least: 5},
		{Title: "MEMORY", Right: true, Fixed: true, Least: 9},
		{Title: "DISK", Right: true, Fixed: true, Least: 9, Rank: 2},
		{Title: "NET IN", Right: true, Fixed: true, Least: 6, Rank: 3},
		{Title: "NET OUT", Right: true, Fixed: true, Least: 7, Rank: 3},
		{Title: "LOAD", Right: true, Fixed: true, Least: 5, Rank: 1},
		{Title: "PROCS", Right: true, Fixed: true, Rank: 5, Extra: true},
		{Title: "READ", Right: true, Fixed: true, Least: 6, Rank: 6, Extra: true},
		{Title: "WRITE", Right: true, Fixed: true, Least: 6, Rank: 7, Extra: true},
		{Title: "HOST CPU", Right: true, Fixed: true, Rank: 8, Extra: true},
		{Title: "HOST MEMORY", Right: true, Fixed: true, Rank: 9, Extra: true},
		{Title: "HOST DISK", Right: true, Fixed: true, Rank: 10, Extra: true},
	}
}

// cells are a row of the table.
func (u usage) cells() []string {
	name, s := u.vm.GetSpec().GetName(), u.now
	if s.GetAtMs() == 0 { // nothing is known of it
		return []string{name, orDash(u.vm.GetState()), "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-"}
	}
	load := strconv.FormatFloat(s.GetLoad1(), 'f', 2, 64)
	if s.GetGuestMemoryTotalBytes() == 0 { // the guest did not answer
		load = "-"
	}
	procs, cpu := orDash(positive(s.GetProcesses())), percent(u.cpu)
	if state := u.vm.GetState(); state == string(vm.Paused) {
		cpu = state
	}
	return []string{
		name, cpu, of(s.GetGuestMemoryUsedBytes(), s.GetGuestMemoryTotalBytes()),
		of(s.GetGuestDiskUsedBytes(), s.GetGuestDiskTotalBytes()), perSecond(u.rx), perSecond(u.tx), load, procs,
		perSecond(u.rd), perSecond(u.wr), percent(u.host), short(s.GetHostRssBytes()), short(s.GetDiskUsedBytes()),
	}
}

func percent(f float64) string {
	if math.IsNaN(f) {
		return "-"
	}
	return strconv.FormatFloat(min(f, 99999), 'f', 0, 64) + "%"
}

// of is "300M/1G", or a dash when it is not known.
func of(used, total uint64) string {
	if total == 0 {
		return "-"
	}
	return short(used) + "/" + short(total)
}

// perSecond is a rate without its "/s", which the title stands for.
func perSecond(f float64) string {
	if math.IsNaN(f) {
		return "-"
	}
	return short(uint64(min(f, math.MaxInt64)))
}

// short is a size in at most five characters: "812M", "1.5G", "10G".
func short(n uint64) string {
	text := vm.FormatSize(n)
	if len(text) <= 4 {
		return text
	}
	number, unit := text[:len(text)-1], text[len(text)-1:]
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || f < 10 {
		return text
	}
	return fmt.Sprintf("%.0f%s", f, unit)
}
