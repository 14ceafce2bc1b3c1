// Package config reads the user's configuration: one TOML file in which every key is optional.
//
//	[defaults]                   what a new VM gets when its creator does not say
//	image = "debian-bookworm"    image reference (banger image catalog)
//	cpus = 2                     at most the host's number of CPUs when not set here
//	memory = "1G"
//	disk = "10G"                 virtual size of the VM's own disk
//
//	[mirror]
//	debian = ""                  base URL of a Debian archive; empty: the one the host's own apt uses
//
//	[vmm]
//	driver = "qemu"
//	accelerator = "auto"         "auto", "kvm" or "tcg"
//
// A key that does not exist is an error, because the alternative is a setting that silently does nothing.
package config

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"banger/internal/fault"
	"banger/internal/nearest"
	"banger/internal/vm"
)

// Config is the whole configuration, with every default filled in.
type Config struct {
	Defaults Defaults
	Mirror   Mirror
	VMM      VMM
}

// Defaults of a new VM.
type Defaults struct {
	Image  string
	CPUs   int
	Memory uint64 // bytes
	Disk   uint64 // bytes
}

// Mirror says where things are fetched from.
type Mirror struct {
	Debian string // base URL; empty: ask the host's apt configuration
}

// VMM chooses the virtual machine monitor.
type VMM struct {
	Driver      string
	Accelerator string // one of the Accelerator constants
}

// Values of VMM.Accelerator.
const (
	AcceleratorAuto = "auto"
	AcceleratorKVM  = "kvm"
	AcceleratorTCG  = "tcg"
)

// Default is the configuration of somebody who has no file.
func Default() Config {
	return Config{
		Defaults: Defaults{
			Image:  "debian-bookworm",
			CPUs:   min(2, runtime.NumCPU()),
			Memory: 1 << 30,
			Disk:   10 << 30,
		},
		VMM: VMM{Driver: "qemu", Accelerator: AcceleratorAuto},
	}
}

// file is the shape of the TOML file. Sizes are text there; a nil pointer is a key that is not set.
type file struct {
	Defaults struct {
		Image  *string `toml:"image"`
		CPUs   *int    `toml:"cpus"`
		Memory *string `toml:"memory"`
		Disk   *string `toml:"disk"`
	} `toml:"defaults"`
	Mirror struct {
		Debian *string `toml:"debian"`
	} `toml:"mirror"`
	VMM struct {
		Driver      *string `toml:"driver"`
		Accelerator *string `toml:"accelerator"`
	} `toml:"vmm"`
}

// known lists every table and key of file, for hints.
var known = []string{
	"defaults", "defaults.image", "defaults.cpus", "defaults.memory", "defaults.disk",
	"mirror", "mirror.debian", "vmm", "vmm.driver", "vmm.accelerator",
}

// Load reads the file at path. A missing one gives the defaults. What is wrong in it is a fault of class Invalid that
// names the file, the line and, for an unknown key, the nearest known one.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, fault.Wrap(fault.Invalid, err, "read configuration")
	}
	return parse(path, string(data))
}

func parse(path, text string) (Config, error) {
	var f file
	meta, err := toml.Decode(text, &f)
	if syntax, ok := errors.AsType[toml.ParseError](err); ok {
		return Config{}, fault.New(fault.Invalid, "%s line %d: %s", path, syntax.Position.Line, syntax.Message).
			WithHint("${EDITOR:-vi} %s", path)
	}
	if err != nil {
		return Config{}, fault.New(fault.Invalid, "%s: %s", path, strings.TrimPrefix(err.Error(), "toml: ")).
			WithHint("${EDITOR:-vi} %s", path)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return Config{}, unknownKey(path, text, unknown[0])
	}
	c := Default()
	return c, c.apply(path, text, &f)
}

// apply puts what the file sets over the defaults and checks it.
func (c *Config) apply(path, text string, f *file) error {
	set(&c.Defaults.Image, f.Defaults.Image)
	set(&c.Defaults.CPUs, f.Defaults.CPUs)
	set(&c.Mirror.Debian, f.Mirror.Debian)
	set(&c.VMM.Driver, f.VMM.Driver)
	set(&c.VMM.Accelerator, f.VMM.Accelerator)
	refuse := func(err error, key ...string) error {
		return fault.Wrap(fault.Invalid, err, "%s line %d: %s", path, lineOf(text, key), strings.Join(key, "."))
	}
	if err := setSize(&c.Defaults.Memory, f.Defaults.Memory, vm.MinMemory); err != nil {
		return refuse(err, "defaults", "memory")
	}
	if err := setSize(&c.Defaults.Disk, f.Defaults.Disk, vm.MinDisk); err != nil {
		return refuse(err, "defaults", "disk")
	}
	if c.Defaults.CPUs < 1 {
		return refuse(errors.New("a vm needs at least 1 cpu"), "defaults", "cpus")
	}
	if c.Defaults.Image == "" {
		return refuse(errors.New("is empty"), "defaults", "image")
	}
	if a := c.VMM.Accelerator; !slices.Contains([]string{AcceleratorAuto, AcceleratorKVM, AcceleratorTCG}, a) {
		return refuse(fault.New(fault.Invalid, "%q is not auto, kvm or tcg", a), "vmm", "accelerator")
	}
	return nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func setSize(to *uint64, from *string, least uint64) error {
	if from == nil {
		return nil
	}
	n, err := vm.ParseSize(*from)
	if err == nil && n < least {
		err = fault.New(fault.Invalid, "%s is less than the least that works, %s", *from, vm.FormatSize(least))
	}
	*to = n
	return err
}

func unknownKey(path, text string, key toml.Key) error {
	f := fault.New(fault.Invalid, "%s line %d: unknown key %q", path, lineOf(text, key), key.String())
	near := nearest.Of(key.String(), known)
	if near == "" && len(key) > 1 { // right key, wrong table
		for _, k := range known {
			if _, name, _ := strings.Cut(k, "."); name == key[len(key)-1] {
				near = k
			}
		}
	}
	if near != "" {
		f.Message += ", did you mean " + near + "?"
	}
	return f.WithHint("${EDITOR:-vi} %s", path)
}

// lineOf is the number of the line on which key's value ends: the shortest prefix of the file that has the key. (The
// TOML library keeps positions to itself.)
func lineOf(text string, key []string) int {
	lines := strings.SplitAfter(text, "\n")
	for n := range lines {
		var ignored map[string]any
		meta, err := toml.Decode(strings.Join(lines[:n+1], ""), &ignored)
		if err == nil && meta.IsDefined(key...) {
			return n + 1
		}
	}
	return len(lines)
}
