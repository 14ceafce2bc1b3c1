package machine

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// nicTimeout is how long the network interface may take to appear.
const nicTimeout = 5 * time.Second

// network is a checked agentwire.Network.
type network struct {
	prefix  netip.Prefix
	gateway netip.Addr // zero for none
	mac     net.HardwareAddr
	mtu     int
}

// parseNetwork checks what the host sent.
func parseNetwork(n *agentwire.Network) (network, error) {
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil || !prefix.Addr().Is4() {
		return network{}, fault.New(fault.Invalid, "network address %q is not an IPv4 address with its prefix length", n.Address)
	}
	parsed := network{prefix: prefix, mtu: n.MTU}
	if n.Gateway != "" {
		if parsed.gateway, err = netip.ParseAddr(n.Gateway); err != nil || !parsed.gateway.Is4() {
			return network{}, fault.New(fault.Invalid, "gateway %q is not an IPv4 address", n.Gateway)
		}
	}
	if n.MAC != "" {
		if parsed.mac, err = net.ParseMAC(n.MAC); err != nil || len(parsed.mac) != 6 {
			return network{}, fault.New(fault.Invalid, "hardware address %q is not one of six bytes", n.MAC)
		}
	}
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		return network{}, fault.New(fault.Invalid, "MTU %d is not between 576 and 65535", n.MTU)
	}
	for _, server := range n.DNS {
		if _, err := netip.ParseAddr(server); err != nil {
			return network{}, fault.New(fault.Invalid, "DNS server %q is not an address", server)
		}
	}
	return parsed, nil
}

// setNetwork brings the loopback interface up and, if the guest has a network, its only other one.
func (m *Machine) setNetwork(ctx context.Context, n *agentwire.Network) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := up(fd, "lo"); err != nil {
		return err
	}
	if n == nil {
		return nil
	}
	parsed, err := parseNetwork(n)
	if err != nil {
		return err
	}
	nic := ""
	if _, err := poll(ctx, nicTimeout, func() (bool, error) { nic = findNIC(); return nic != "", nil }); err != nil || nic == "" {
		return fault.New(fault.Unavailable, "the guest has no network interface")
	}
	m.nic = nic
	old := m.applied
	if old.prefix == parsed.prefix && old.gateway == parsed.gateway && old.mtu == parsed.mtu && parsed.mac != nil {
		err = setMAC(fd, nic, parsed.mac) // all that a guest that was woken as another one has to change
	} else {
		err = parsed.apply(fd, nic)
	}
	if err != nil {
		return err
	}
	m.applied = parsed
	if old.mac != nil && parsed.mac != nil && !bytes.Equal(old.mac, parsed.mac) {
		m.changeLinkLocal(old.mac)
	}
	return nil
}

// findNIC returns the first interface that is on a bus, or "".
func findNIC() string {
	devices, _ := filepath.Glob("/sys/class/net/*/device")
	if len(devices) == 0 {
		return ""
	}
	return filepath.Base(filepath.Dir(devices[0]))
}

// apply sets the interface up by the old ioctls, which are all it takes.
func (n network) apply(fd int, nic string) error {
	if n.mtu != 0 {
		if err := ifreq(fd, nic, "mtu", unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(uint32(n.mtu)); return nil }); err != nil {
			return err
		}
	}
	if n.mac != nil {
		if err := setMAC(fd, nic, n.mac); err != nil {
			return err
		}
	}
	addr := n.prefix.Addr().As4()
	mask := ^uint32(0) << (32 - n.prefix.Bits())
	if n.prefix.Bits() == 0 {
		mask = 0
	}
	err := ifreq(fd, nic, "address", unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) })
	if err != nil {
		return err
	}
	err = ifreq(fd, nic, "netmask", unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error {
		return r.SetInet4Addr([]byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)})
	})
	if err != nil {
		return err
	}
	if err := up(fd, nic); err != nil {
		return err
	}
	if !n.gateway.IsValid() {
		return nil
	}
	return addDefaultRoute(fd, n.gateway)
}

// up sets an interface up.
func up(fd int, nic string) error {
	return ifreq(fd, nic, "flags", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error {
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		return nil
	})
}

// setMAC gives the interface a hardware address: it has the one of the machine that this one was restored from.
func setMAC(fd int, nic string, mac net.HardwareAddr) error {
	r := struct { // struct ifreq with ifr_hwaddr
		name   [unix.IFNAMSIZ]byte
		family uint16
		addr   [22]byte
	}{family: unix.ARPHRD_ETHER}
	copy(r.name[:unix.IFNAMSIZ-1], nic)
	copy(r.addr[:], mac)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return fault.Wrap(fault.Internal, errno, "network interface %s: set hardware address", nic)
	}
	return nil
}

// ifreq makes one request about an interface.
func ifreq(fd int, nic, what string, request uint, set func(*unix.Ifreq) error) error {
	r, err := unix.NewIfreq(nic)
	if err == nil {
		err = set(r)
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, request, r)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "network interface %s: set %s", nic, what)
	}
	return nil
}

// rtentry is the kernel's struct rtentry on 64-bit machines.
type rtentry struct {
	_       uint64
	dst     unix.RawSockaddrInet4
	gateway unix.RawSockaddrInet4
	genmask unix.RawSockaddrInet4
	flags   uint16
	_       int16
	_       uint64
	_       uintptr
	metric  int16
	dev     uintptr
	mtu     uint64
	window  uint64
	irtt    uint16
}

// addDefaultRoute sends everything that is not local to the gateway.
func addDefaultRoute(fd int, gateway netip.Addr) error {
	route := rtentry{
		dst:     unix.RawSockaddrInet4{Family: unix.AF_INET},
		gateway: unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: gateway.As4()},
		genmask: unix.RawSockaddrInet4{Family: unix.AF_INET},
		flags:   unix.RTF_UP | unix.RTF_GATEWAY,
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&route)))
	if errno != 0 && errno != unix.EEXIST { // it is there when a guest gets another address
		return fault.Wrap(fault.Internal, errno, "default route by %s", gateway)
	}
	return nil
}
