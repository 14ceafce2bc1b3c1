package supervisor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	bangerv1 "banger/proto/banger/v1"
)

// statBlock is the unit of st_blocks, whatever the file system's own is.
const statBlock = 512

// hostSample begins a sample with what the VM costs the host: VMM, supervisor and disk.
func (s *Supervisor) hostSample(at time.Time) *bangerv1.Sample {
	sample := &bangerv1.Sample{AtMs: at.UnixMilli()}
	status, _ := s.board.get()
	for _, pid := range []int{os.Getpid(), int(status.GetVmmPid())} {
		cpu, rss := usage(pid)
		sample.HostCpuMs += cpu
		sample.HostRssBytes += rss
	}
	var st syscall.Stat_t
	if err := syscall.Stat(s.diskPath(), &st); err == nil {
		sample.DiskUsedBytes = uint64(st.Blocks) * statBlock
	}
	return sample
}

// usage returns the CPU time of a process and how much memory it has in use, 0 for one that is gone.
func usage(pid int) (cpuMillis, rss uint64) {
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		cpuMillis = parseCPUTime(string(stat))
	}
	if statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		if fields := strings.Fields(string(statm)); len(fields) > 1 {
			pages, _ := strconv.ParseUint(fields[1], 10, 64)
			rss = pages * uint64(os.Getpagesize())
		}
	}
	return cpuMillis, rss
}

// parseCPUTime reads a process's time in user mode and in the kernel from /proc/PID/stat. The name, in parentheses, may
// hold anything: fields count from the last one.
func parseCPUTime(stat string) uint64 {
	const (
		user, system = 14 - 3, 15 - 3 // as in proc(5), without pid and comm, from 0
		tickMillis   = 10             // USER_HZ is 100
	)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= system {
		return 0
	}
	var ticks uint64
	for _, field := range fields[user : system+1] {
		n, _ := strconv.ParseUint(field, 10, 64)
		ticks += n
	}
	return ticks * tickMillis
}
