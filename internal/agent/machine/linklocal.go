package machine

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel makes an interface's IPv6 link-local address when it comes up, of the hardware address or of a secret, and
// leaves it when the hardware address changes. A guest that is woken as another one would keep that of the guest that it
// was made from.

// How the kernel makes such addresses: IN6_ADDR_GEN_MODE_... of linux/if_link.h.
const (
	genEUI64  = "0" // of the hardware address
	genNone   = "1"
	genStable = "2" // of a secret
	genRandom = "3" // of a secret that the kernel has made up
)

const (
	inet6File = "/proc/net/if_inet6"
	ipv6Conf  = "/proc/sys/net/ipv6/conf/"
)

// linkLocalDelay is when a guest that was made ready for many (Rehearse) gets its link-local address. Under software
// emulation that takes 10 ms and more, and no first command waits for it.
const linkLocalDelay = time.Second

// withoutLinkLocal removes the link-local address of a guest that many will be made from, and has the kernel make none,
// which it may just be about to do: it does so some time after the interface has come up. The caller holds mu.
func (m *Machine) withoutLinkLocal() {
	if m.nic == "" || m.applied.mac == nil {
		return
	}
	mode := ipv6Conf + m.nic + "/addr_gen_mode"
	if text, err := readSmall(mode); err != nil || strings.TrimSpace(text) != genEUI64 {
		return // a guest without IPv6
	}
	err := os.WriteFile(mode, []byte(genNone), 0o600)
	if err == nil {
		err = m.dropLinkLocal()
	}
	if err != nil { // then it is renewed at each start, which takes longer
		m.Error("network interface " + m.nic + ": " + errors.Join(err, os.WriteFile(mode, []byte(genEUI64), 0o600)).Error())
		return
	}
	m.lacksLinkLocal = true
}

// dropLinkLocal removes the link-local address that goes with the hardware address, if there is one. The caller holds mu.
func (m *Machine) dropLinkLocal() error {
	text, err := readSmall(inet6File)
	if err == nil && slices.Contains(linkLocals(text, m.nic), eui64(m.applied.mac)) {
		err = changeAddress(m.nic, unix.SIOCDIFADDR, eui64(m.applied.mac))
	}
	return err
}

// changeLinkLocal takes note of another hardware address than old. What fails is logged only: nobody but its own host
// hears of these addresses. The caller holds mu.
func (m *Machine) changeLinkLocal(old net.HardwareAddr) {
	if m.lacksLinkLocal {
		time.AfterFunc(linkLocalDelay, m.addLinkLocal)
		return
	}
	if err := renewLinkLocal(m.nic, old, m.applied.mac); err != nil {
		m.Error("network interface " + m.nic + ": " + err.Error())
	}
}

// addLinkLocal undoes withoutLinkLocal: the kernel makes the address when it is allowed to.
func (m *Machine) addLinkLocal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.lacksLinkLocal {
		return
	}
	m.lacksLinkLocal = false
	mode := ipv6Conf + m.nic + "/addr_gen_mode"
	if text, err := readSmall(mode); err != nil || strings.TrimSpace(text) != genNone {
		return // somebody has renamed the interface, moved it, or set another mode
	}
	if err := os.WriteFile(mode, []byte(genEUI64), 0o600); err != nil {
		m.Error("network interface " + m.nic + ": " + err.Error())
	}
}

// renewLinkLocal replaces the link-local addresses that an interface has of the time when old was its hardware address, which
// is mac now.
func renewLinkLocal(nic string, old, mac net.HardwareAddr) error {
	text, err := readSmall(inet6File)
	if err != nil { // a kernel, or a guest, without IPv6
		return nil //nolint:nilerr // nothing to replace
	}
	all := linkLocals(text, nic)
	if len(all) == 0 {
		return nil
	}
	own := eui64(old)
	if slices.Contains(all, own) {
		if own == eui64(mac) {
			return nil
		}
		return replaceAddress(nic, own, eui64(mac))
	}
	mode, err := readSmall(ipv6Conf + nic + "/addr_gen_mode")
	if err != nil {
		return err
	}
	if mode = strings.TrimSpace(mode); mode != genStable && mode != genRandom {
		return nil // somebody has set it by hand
	}
	return newSecret(nic, mode, all)
}

// newSecret has the kernel make other addresses.
func newSecret(nic, mode string, all []netip.Addr) error {
	var secret [16]byte
	rand.Read(secret[:]) // never fails (crypto/rand)
	conf := ipv6Conf + nic + "/"
	err := os.WriteFile(conf+"stable_secret", []byte(netip.AddrFrom16(secret).String()), 0o600)
	for _, addr := range all {
		err = errors.Join(err, changeAddress(nic, unix.SIOCDIFADDR, addr))
	}
	// A change of the mode makes the kernel look whether an address is missing.
	return errors.Join(err, os.WriteFile(conf+"addr_gen_mode", []byte(genNone), 0o600), os.WriteFile(conf+"addr_gen_mode", []byte(mode), 0o600))
}

// linkLocals finds an interface's addresses in /proc/net/if_inet6.
func linkLocals(text, nic string) (all []netip.Addr) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 6 || fields[5] != nic {
			continue
		}
		raw, err := hex.DecodeString(fields[0])
		if err != nil {
			continue
		}
		if addr, ok := netip.AddrFromSlice(raw); ok && addr.Is6() && addr.IsLinkLocalUnicast() {
			all = append(all, addr)
		}
	}
	return all
}

// eui64 is the link-local address that goes with a hardware address of six bytes (RFC 4291, appendix A).
func eui64(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// replaceAddress gives an interface a link-local address in place of another one: first the new one, so that the route
// stays.
func replaceAddress(nic string, old, addr netip.Addr) error {
	err := changeAddress(nic, unix.SIOCSIFADDR, addr)
	if errors.Is(err, unix.EEXIST) {
		err = nil
	}
	return errors.Join(err, changeAddress(nic, unix.SIOCDIFADDR, old))
}

// changeAddress adds or removes a link-local address.
func changeAddress(nic string, request uintptr, addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	index, err := unix.NewIfreq(nic)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, index)
	}
	if err != nil {
		return os.NewSyscallError("index of "+nic, err)
	}
	r := struct { // struct in6_ifreq
		addr   [16]byte
		prefix uint32
		index  int32
	}{addr.As16(), 64, int32(index.Uint32())}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return os.NewSyscallError("change address "+addr.String(), errno)
	}
	return nil
}
