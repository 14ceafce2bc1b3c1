// Package netstack decides how one VM is connected: both halves of it, what the VMM attaches and what the guest is told.
//
// For now it is the VMM's own user-mode network, which reaches out and lets nothing in. The user-space network that
// the supervisor will run takes its place behind the same Plan.
package netstack

import (
	"crypto/sha256"
	"net"
	"net/netip"

	"banger/internal/agentwire"
	"banger/internal/hypervisor"
	"banger/internal/vm"
)

// Address is the guest's address with that number. Each VM has one of its own as long as it exists, although each is
// alone on its network: what a VM is known by, there and in its logs, tells it from the others.
func Address(n int) string { return address(n).Addr().String() }

func address(n int) netip.Prefix {
	network := netip.MustParsePrefix(hypervisor.UserNetwork)
	a := network.Addr().As4()
	a[2], a[3] = byte(n>>8), byte(n)
	return netip.PrefixFrom(netip.AddrFrom4(a), network.Bits())
}

// deviceMAC is the hardware address with which a VM's device begins.
const deviceMAC = "02:00:00:00:00:01"

// Plan is the connection of one VM.
type Plan struct {
	Host  hypervisor.Network // for the VMM
	Guest *agentwire.Network // for the agent
}

// For returns the plan for the VM with that id and number of its address. It is the same at every start.
func For(id vm.ID, n int) Plan {
	return Plan{
		// The VMM's device is the same in every VM, so that all can be restored from one; the guest changes its address.
		Host: hypervisor.Network{Kind: hypervisor.NetworkUser, MAC: deviceMAC},
		Guest: &agentwire.Network{
			MAC:     mac(id),
			Address: address(n).String(), Gateway: hypervisor.UserGateway, DNS: []string{hypervisor.UserDNS},
		},
	}
}

// mac derives a hardware address from the id: locally administered, unicast (IEEE 802, the two low bits of the first
// byte).
func mac(id vm.ID) string {
	sum := sha256.Sum256([]byte(id))
	addr := net.HardwareAddr(sum[:6])
	addr[0] = addr[0]&^1 | 2
	return addr.String()
}
