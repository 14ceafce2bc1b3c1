package netstack

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestForIsStableAndDistinct(t *testing.T) {
	a, b := For("0123456789ab", 16), For("0123456789ac", 300)
	if diff := cmp.Diff(a, For("0123456789ab", 16)); diff != "" {
		t.Errorf("not stable: %s", diff)
	}
	if a.Guest.MAC == b.Guest.MAC {
		t.Errorf("two VMs share %s", a.Guest.MAC)
	}
	if a.Host != b.Host {
		t.Errorf("two VMs have devices that differ: %v, %v", a.Host, b.Host)
	}
	if a.Guest.Address != "10.90.0.16/16" || b.Guest.Address != "10.90.1.44/16" || Address(300) != "10.90.1.44" {
		t.Errorf("addresses %s and %s", a.Guest.Address, b.Guest.Address)
	}
	for _, p := range []Plan{a, b} {
		for _, mac := range []string{p.Host.MAC, p.Guest.MAC} {
			hw, err := net.ParseMAC(mac)
			if err != nil || hw[0]&3 != 2 {
				t.Errorf("%s is not a local unicast address (%v)", mac, err)
			}
		}
		prefix, err := netip.ParsePrefix(p.Guest.Address)
		if err != nil || !prefix.Contains(netip.MustParseAddr(p.Guest.Gateway)) {
			t.Errorf("gateway %s is outside %s (%v)", p.Guest.Gateway, p.Guest.Address, err)
		}
	}
}
