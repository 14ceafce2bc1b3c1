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
	kind    kind // how it is written
	value   func(*Config) string
}

// kind is how a setting is written in TOML.
type kind int

const (
	text   kind = iota
	number      // an integer
	list        // of strings; for people, one after the other with commas between
)

// keyNames lists the names of all settings.
func keyNames() []string {
	var names []string
	for _, k := range keys() {
		names = append(names, k.name)
	}
	return names
}

// keys lists every setting in the order of the file.
func keys() []key {
	return []key{
		{"defaults.image", "image of a new VM whose creator names none (banger image catalog)", text,
			func(c *Config) string { return c.Defaults.Image }},
		{"defaults.cpus", "virtual CPUs of a new VM", number,
			func(c *Config) string { return strconv.Itoa(c.Defaults.CPUs) }},
		{"defaults.memory", "memory of a new VM", text,
			func(c *Config) string { return size(c.Defaults.Memory) }},
		{"defaults.disk", "virtual size of a new VM's own disk; it takes what is in it", text,
			func(c *Config) string { return size(c.Defaults.Disk) }},
		{"defaults.auto_stop", "stop a VM that nobody has used for so long (\"30m\", \"2h\"); \"0\": never", text,
			func(c *Config) string { return duration(c.Defaults.AutoStop) }},
		{"defaults.idle_action", "what happens to a VM that nobody has used for auto_stop: \"stop\", or \"suspend\" (its memory goes to the disk)", text,
			func(c *Config) string { return c.Defaults.IdleAction }},
		{"defaults.checkpoint", "\"each-exec\": a snapshot is taken by itself before each exec and ssh (banger vm rewind goes back); \"off\": none is", text,
			func(c *Config) string { return c.Defaults.Checkpoint }},
		{"limits.checkpoints", "how many automatic snapshots of a VM are kept; the oldest go first", number,
			func(c *Config) string { return strconv.Itoa(c.Limits.Checkpoints) }},
		{"limits.events", "how many events are kept", number,
			func(c *Config) string { return strconv.Itoa(c.Limits.Events) }},
		{"limits.templates", "how much of the disk templates may take; the least recently used go first", text,
			func(c *Config) string { return size(c.Limits.Templates) }},
		{"limits.start_memory", "memory that a VM is thought to take when it starts; where the host has less it is refused; \"0\": never", text,
			func(c *Config) string {
				if c.Limits.StartMemory == 0 {
					return "0"
				}
				return size(c.Limits.StartMemory)
			}},
		{"limits.image_size", "the most that an image may hold, uncompressed", text,
			func(c *Config) string { return size(c.Limits.ImageSize) }},
		{"limits.image_entries", "the most files, directories and links that an image may have", number,
			func(c *Config) string { return strconv.Itoa(c.Limits.ImageEntries) }},
		{"limits.download_size", "the most that a bundle from the network may have", text,
			func(c *Config) string { return size(c.Limits.DownloadSize) }},
		{"mirror.debian", "base URL of a Debian archive; empty: the one that the host's own apt uses", text,
			func(c *Config) string { return c.Mirror.Debian }},
		{"trust.keys", "minisign public keys (\"RW...\") that bundles from the network may be signed with", list,
			func(c *Config) string { return strings.Join(c.Trust.Keys, ", ") }},
		{"registry.insecure", "registries (host or host:port), besides those on this host, that are asked by plain HTTP", list,
			func(c *Config) string { return strings.Join(c.Registry.Insecure, ", ") }},
		{"vmm.driver", "virtual machine monitor", text,
			func(c *Config) string { return c.VMM.Driver }},
		{"vmm.accelerator", "\"auto\", \"kvm\" or \"tcg\" (software emulation)", text,
			func(c *Config) string { return c.VMM.Accelerator }},
		{"vmm.templates", "\"on\": VMs are started from a machine that was booted once; \"off\": every VM boots", text,
			func(c *Config) string {
				if c.VMM.Templates {
					return "on"
				}
				return "off"
			}},
		{"vmm.warm_pool", "how many VMs of the usual kind run ahead of their creation, so that one is there at once; each takes memory", number,
			func(c *Config) string { return strconv.Itoa(c.VMM.WarmPool) }},
	}
}

// literal is a value of the key in TOML.
func (k *key) literal(value string) string {
	switch k.kind {
	case number:
		return value
	case list:
		quoted := []string{}
		for _, word := range splitList(value) {
			quoted = append(quoted, quote(word))
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return quote(value)
}

// splitList reads a list as people write it: words with commas or spaces between.
func splitList(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
}

// quote is a string in TOML.
func quote(value string) string {
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
