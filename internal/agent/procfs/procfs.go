// Package procfs reads what the kernel says of the machine in /proc: what it uses (this file) and what listens on it
// (ports.go).
//
// It is called every few seconds for as long as a guest lives, mostly under software emulation, so it opens few files
// and makes few system calls. Programs of the guest choose some of what stands there (names, numbers of processes and
// sockets): everything read is bounded.
package procfs

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
)

// Root is where /proc is mounted.
type Root string

// maxFile bounds what is read of one file. The kernel lists listening TCP sockets before all others.
const maxFile = 1 << 20

// tickMillis is the kernel's unit of CPU time for programs (USER_HZ is 100 on every architecture of interest).
const tickMillis = 10

// diskSector is the unit of /proc/diskstats, whatever the disk's own is.
const diskSector = 512

func (r Root) path(elem ...string) string {
	return filepath.Join(append([]string{string(r)}, elem...)...)
}

// read returns the beginning of a file.
func (r Root) read(elem ...string) ([]byte, error) {
	f, err := os.Open(r.path(elem...))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Stats says what the machine uses; nic is its network interface, "" for none. The data disk is not in it.
func (r Root) Stats(nic string) (agentwire.Stats, error) {
	var s agentwire.Stats
	for name, parse := range map[string]func(text string){
		"stat":      func(text string) { s.CPUMillis = parseCPU(text) },
		"meminfo":   func(text string) { s.MemoryTotal, s.MemoryAvailable = parseMemory(text) },
		"loadavg":   func(text string) { s.Load1 = parseLoad(text) },
		"diskstats": func(text string) { s.DiskRead, s.DiskWritten = parseDisks(text) },
		"net/dev":   func(text string) { s.NetReceived, s.NetSent = parseNet(text, nic) },
	} {
		text, err := r.read(name)
		if err != nil {
			return agentwire.Stats{}, err
		}
		parse(string(text))
	}
	pids, err := r.pids()
	if err != nil {
		return agentwire.Stats{}, err
	}
	for _, pid := range pids {
		if r.isProgram(pid) {
			s.Processes++
		}
	}
	return s, nil
}

// pids lists the processes, oldest first (until the numbers wrap around).
func (r Root) pids() ([]string, error) {
	dir, err := os.Open(string(r))
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(maxProcesses)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	pids := names[:0]
	for _, name := range names {
		if name[0] >= '1' && name[0] <= '9' {
			pids = append(pids, name)
		}
	}
	slices.SortFunc(pids, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	return pids, nil
}

// maxProcesses bounds how many processes are looked at.
const maxProcesses = 8192

// isProgram tells a process from a thread of the kernel, which has no program, and from one that has ended. It is one
// system call.
func (r Root) isProgram(pid string) bool {
	var b [1]byte
	_, err := unix.Readlink(r.path(pid, "exe"), b[:])
	return err == nil || errors.Is(err, unix.EACCES)
}

// parseCPU reads the time that all processors were busy from /proc/stat, in milliseconds.
func parseCPU(text string) uint64 {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 5 || fields[0] != "cpu" {
		return 0
	}
	var busy uint64
	for i, field := range fields[1:min(len(fields), 9)] { // then guest times, which user has already
		const idle, iowait = 3, 4
		if i != idle && i != iowait {
			busy += number(field)
		}
	}
	return busy * tickMillis
}

// parseMemory reads total and available memory from /proc/meminfo, in bytes.
func parseMemory(text string) (total, available uint64) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "MemTotal":
			total = kibibytes(value)
		case "MemAvailable":
			return total, kibibytes(value) // comes after the other
		}
	}
	return total, 0
}

func kibibytes(value string) uint64 {
	return number(strings.TrimSuffix(strings.TrimSpace(value), " kB")) << 10
}

// parseLoad reads the load average of the last minute.
func parseLoad(text string) float64 {
	first, _, _ := strings.Cut(text, " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil || load != load || load < 0 {
		return 0
	}
	return load
}

// parseDisks adds up what was read from and written to the virtio disks, without their partitions, which would count
// twice.
func parseDisks(text string) (read, written uint64) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 10 || !isDisk(fields[2]) {
			continue
		}
		read += number(fields[5]) * diskSector
		written += number(fields[9]) * diskSector
	}
	return read, written
}

func isDisk(name string) bool {
	letters, ok := strings.CutPrefix(name, "vd")
	return ok && letters != "" && strings.Trim(letters, "abcdefghijklmnopqrstuvwxyz") == ""
}

// parseNet reads the bytes that the interface received and sent from /proc/net/dev.
func parseNet(text, nic string) (received, sent uint64) {
	for line := range strings.Lines(text) {
		name, counters, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != nic {
			continue
		}
		if fields := strings.Fields(counters); len(fields) > 8 {
			return number(fields[0]), number(fields[8])
		}
	}
	return 0, 0
}

// number returns 0 for what is none.
func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// comm is the name of a process.
func (r Root) comm(pid string) string {
	name, err := r.read(pid, "comm")
	if err != nil {
		return ""
	}
	return string(bytes.TrimRight(name[:min(len(name), agentwire.MaxProcessName)], "\n"))
}
