package machine

import (
	"fmt"
	"net"
	"testing"
)

func TestLinkLocals(t *testing.T) {
	text := `00000000000000000000000000000001 01 80 10 80       lo
fe800000000000002c7116fffe42b726 02 40 20 80     eth0
20010db800000000000000000000 02 40 00 80     eth0
20010db8000000002c7116fffe42b726 02 40 00 80     eth0
fe800000000000002c7116fffe42b727 03 40 20 80  docker0
zz 02 40 20 80 eth0
fe80
`
	mac := net.HardwareAddr{0x2e, 0x71, 0x16, 0x42, 0xb7, 0x26}
	if got := fmt.Sprint(linkLocals(text, "eth0")); got != "["+eui64(mac).String()+"]" || got != "[fe80::2c71:16ff:fe42:b726]" {
		t.Error(got)
	}
	if got := linkLocals(text, "eth1"); len(got) > 0 {
		t.Error(got)
	}
}
