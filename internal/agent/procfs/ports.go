package procfs

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
)

// maxFiles bounds how many open files are looked at for the owners of sockets.
const maxFiles = 1 << 16

// States of a socket in /proc/net (include/net/tcp_states.h). An UDP socket that takes datagrams from anybody, as
// servers' do, is in that of a closed one; an established one has a peer.
const (
	stateListen = "0A"
	stateClose  = "07"
)

// socket is one that listens.
type socket struct {
	protocol string
	address  netip.AddrPort
	inode    string
}

// Ports lists what listens in this network namespace and who, agentwire.MaxPorts at most.
func (r Root) Ports() (agentwire.Ports, error) {
	var sockets []socket
	for _, table := range []struct{ name, protocol, state string }{
		{"tcp", "tcp", stateListen}, {"tcp6", "tcp", stateListen}, {"udp", "udp", stateClose}, {"udp6", "udp", stateClose},
	} {
		text, err := r.read("net", table.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return agentwire.Ports{}, err
		}
		sockets = append(sockets, parseSockets(string(text), table.protocol, table.state)...)
	}
	sockets = sockets[:min(len(sockets), agentwire.MaxPorts)]
	owners, err := r.owners(sockets)
	if err != nil {
		return agentwire.Ports{}, err
	}
	ports := make([]agentwire.Port, 0, len(sockets))
	names := map[string]string{}
	for _, s := range sockets {
		p := agentwire.Port{Protocol: s.protocol, Address: s.address.Addr().String(), Port: s.address.Port()}
		if pid, ok := owners[s.inode]; ok {
			if _, known := names[pid]; !known {
				names[pid] = r.comm(pid)
			}
			p.PID, _ = strconv.Atoi(pid)
			p.Process = names[pid]
		}
		if !slices.Contains(ports, p) { // several sockets can share a port
			ports = append(ports, p)
		}
	}
	return agentwire.Ports{Ports: ports}, nil
}

// parseSockets reads the sockets in the given state from a table of /proc/net.
func parseSockets(text, protocol, state string) []socket {
	var out []socket
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != state {
			continue
		}
		address, ok := parseAddress(fields[1])
		if !ok || address.Port() == 0 {
			continue
		}
		out = append(out, socket{protocol: protocol, address: address, inode: fields[9]})
		if len(out) == agentwire.MaxPorts {
			break
		}
	}
	return out
}

// parseAddress reads an address of /proc/net: the 32-bit words of the IP address in the machine's byte order, and the
// port, both in hexadecimal.
func parseAddress(s string) (netip.AddrPort, bool) {
	words, portText, _ := strings.Cut(s, ":")
	port, err := strconv.ParseUint(portText, 16, 16)
	raw, hexErr := hex.DecodeString(words)
	if err != nil || hexErr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		word := binary.BigEndian.Uint32(raw[i:])
		binary.NativeEndian.PutUint32(raw[i:], word)
	}
	ip, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip, uint16(port)), ok
}

// owners finds for each socket's inode the first process that has it open. It stops when all are found.
func (r Root) owners(sockets []socket) (map[string]string, error) {
	wanted := map[string]bool{}
	for _, s := range sockets {
		wanted[s.inode] = true
	}
	owners := map[string]string{}
	if len(wanted) == 0 {
		return owners, nil
	}
	pids, err := r.pids()
	if err != nil {
		return nil, err
	}
	files := 0
	for _, pid := range pids {
		if len(wanted) == 0 || files >= maxFiles {
			break
		}
		if r.isProgram(pid) {
			files += r.claim(pid, wanted, owners)
		}
	}
	return owners, nil
}

// claim moves the sockets that a process has open from wanted to owners. It returns how many files it looked at. A
// process that has ended meanwhile has none.
func (r Root) claim(pid string, wanted map[string]bool, owners map[string]string) int {
	dir, err := os.Open(r.path(pid, "fd"))
	if err != nil {
		return 0
	}
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(maxFiles)
	link := make([]byte, 64)
	for _, name := range names {
		n, err := unix.Readlinkat(int(dir.Fd()), name, link)
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(string(link[:n]), "socket:[")
		if inode = strings.TrimSuffix(inode, "]"); ok && wanted[inode] {
			delete(wanted, inode)
			owners[inode] = pid
		}
	}
	return len(names)
}
