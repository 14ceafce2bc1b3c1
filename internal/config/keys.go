package config

import (
	"strconv"
	"strings"
	"time"

	"banger/internal/vm"
)

// key is one setting: where it stands, what it is for, and how its value is written in TOML.
type key struct {
	name    string // table and key: "defaults.cpus"
	comment string
	number  bool // an integer in TOML, else a string
	value   func(*Config) string
}

// keys lists every setting in the order of the file.
func keys() []key {
	return []key{
		{"defaults.image", "image of a new VM whose creator names none (banger image catalog)", false,
			func(c *Config) string { return c.Defaults.Image }},
		{"defaults.cpus", "virtual CPUs of a new VM", true,
			func(c *Config) string { return strconv.Itoa(c.Defaults.CPUs) }},
		{"defaults.memory", "memory of a new VM", false,
			func(c *Config) string { return size(c.Defaults.Memory) }},
		{"defaults.disk", "virtual size of a new VM's own disk; it takes what is in it", false,
			func(c *Config) string { return size(c.Defaults.Disk) }},
		{"defaults.auto_stop", "stop a VM that nobody has used for so long (\"30m\", \"2h\"); \"0\": never", false,
			func(c *Config) string { return duration(c.Defaults.AutoStop) }},
		{"defaults.idle_action", "what happens to a VM that nobody has used for auto_stop: \"stop\", or \"suspend\" (its memory goes to the disk)", false,
			func(c *Config) string { return c.Defaults.IdleAction }},
		{"limits.events", "how many events are kept", true,
			func(c *Config) string { return strconv.Itoa(c.Limits.Events) }},
		{"limits.templates", "how much of the disk templates may take; the least recently used go first", false,
			func(c *Config) string { return size(c.Limits.Templates) }},
		{"mirror.debian", "base URL of a Debian archive; empty: the one that the host's own apt uses", false,
			func(c *Config) string { return c.Mirror.Debian }},
		{"vmm.driver", "virtual machine monitor", false,
			func(c *Config) string { return c.VMM.Driver }},
		{"vmm.accelerator", "\"auto\", \"kvm\" or \"tcg\" (software emulation)", false,
			func(c *Config) string { return c.VMM.Accelerator }},
		{"vmm.templates", "\"on\": VMs are started from a machine that was booted once; \"off\": every VM boots", false,
			func(c *Config) string {
				if c.VMM.Templates {
					return "on"
				}
				return "off"
			}},
	}
}

// literal is a value of the key in TOML.
func (k *key) literal(value string) string {
	if k.number {
		return value
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range value {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			b.WriteString(`\u00` + string("0123456789abcdef"[r>>4]) + string("0123456789abcdef"[r&15]))
		default:
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}

// size is n so that vm.ParseSize reads back exactly the same.
func size(n uint64) string {
	text := vm.FormatSize(n)
	if back, err := vm.ParseSize(text); err != nil || back != n {
		return strconv.FormatUint(n, 10)
	}
	return text
}

// duration is d without the zeros that time.Duration prints: "30m" and not "30m0s".
func duration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
