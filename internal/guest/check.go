package guest

import (
	"math"
	"net/netip"
	"strings"
	"unicode"

	"banger/internal/agentwire"
)

// Bounds of what a guest can say of itself. They are beyond everything real and keep sums from overflowing.
const (
	maxCounter   = 1 << 60
	maxProcesses = 1 << 22 // the kernel's own limit
)

// checkStats brings what a guest says into the range of the possible.
func checkStats(s agentwire.Stats) agentwire.Stats {
	for _, n := range []*uint64{
		&s.CPUMillis, &s.MemoryTotal, &s.MemoryAvailable, &s.DiskRead, &s.DiskWritten, &s.NetReceived, &s.NetSent,
		&s.DataTotal, &s.DataUsed,
	} {
		*n = min(*n, maxCounter)
	}
	s.MemoryAvailable = min(s.MemoryAvailable, s.MemoryTotal)
	s.DataUsed = min(s.DataUsed, s.DataTotal)
	s.Load1 = math.Min(math.Max(s.Load1, 0), maxProcesses)
	s.Processes = min(max(s.Processes, 0), maxProcesses)
	s.Sessions = min(max(s.Sessions, 0), agentwire.MaxSessions)
	return s
}

// checkPorts returns the ports that can be, at most agentwire.MaxPorts, with names that a terminal can show.
func checkPorts(ports []agentwire.Port) []agentwire.Port {
	var out []agentwire.Port
	for _, p := range ports[:min(len(ports), agentwire.MaxPorts)] {
		address, err := netip.ParseAddr(p.Address)
		if err != nil || address.Zone() != "" || p.Port == 0 || p.Protocol != "tcp" && p.Protocol != "udp" {
			continue
		}
		p.Address = address.String()
		p.PID = min(max(p.PID, 0), maxProcesses)
		p.Process = processName(p.Process)
		out = append(out, p)
	}
	return out
}

// processName makes one word of what a guest calls a process.
func processName(name string) string {
	if len(name) > agentwire.MaxProcessName {
		name = name[:agentwire.MaxProcessName]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(name, "")))
}
