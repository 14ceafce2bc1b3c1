// Package config reads and edits the user's configuration: one TOML file in which every key is optional. What the keys
// are and mean stands in keys.go, from which Init writes a commented file.
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
	"time"

	"github.com/BurntSushi/toml"

	"banger/internal/fault"
	"banger/internal/image/webcatalog"
	"banger/internal/nearest"
	"banger/internal/vm"
)

// Config is the whole configuration, with every default filled in.
type Config struct {
	Defaults Defaults
	Limits   Limits
	Mirror   Mirror
	Trust    Trust
	Registry Registry
	VMM      VMM
	Catalogs []webcatalog.Config // in the order of preference
}

// Defaults of a new VM.
type Defaults struct {
	Image  string
	CPUs   int
	Memory uint64 // bytes
	Disk   uint64 // bytes
	// AutoStop is how long a VM may be unused until it is stopped; 0: for ever.
	AutoStop time.Duration
	// IdleAction is what happens to it then: one of the Idle constants.
	IdleAction string
	// Checkpoint says when a snapshot is taken by itself: one of the Checkpoint constants. It holds for VMs that are there, too.
	Checkpoint string
}

// Values of Defaults.Checkpoint.
const (
	CheckpointOff      = "off"
	CheckpointEachExec = "each-exec"
)

// Values of Defaults.IdleAction.
const (
	IdleStop    = "stop"
	IdleSuspend = "suspend"
)

// Limits of what the daemon keeps, and of what it takes from elsewhere.
type Limits struct {
	Events       int    // the newest so many
	Checkpoints  int    // automatic snapshots of each VM: the newest so many
	Templates    uint64 // bytes on the host that templates may take
	StartMemory  uint64 // bytes of memory that the start of a VM is thought to take; 0: none is refused
	ImageSize    uint64 // bytes of all files of an image
	ImageEntries int    // files, directories and links of an image
	DownloadSize uint64 // bytes of a bundle from the network
}

// MostEvents is the largest Limits.Events; the least is LeastEvents.
const (
	LeastEvents = 100
	MostEvents  = 1_000_000
)

// MostCheckpoints is the largest Limits.Checkpoints.
const MostCheckpoints = 100

// Bounds of the limits of images: below the least no system fits, and above the most what counts them breaks.
const (
	leastSize   = 1 << 20
	mostSize    = 16 << 40
	mostEntries = 16 << 20
)

// Trust says whom to believe.
type Trust struct {
	Keys []string // minisign public keys of bundles from the network
}

// Registry is about image registries.
type Registry struct {
	Insecure []string // hosts, perhaps with a port, that may be spoken to by plain HTTP
}

// Mirror says where things are fetched from.
type Mirror struct {
	Debian string // base URL; empty: ask the host's apt configuration
}

// VMM chooses the virtual machine monitor.
type VMM struct {
	Driver      string
	Accelerator string // one of the Accelerator constants
	Templates   bool   // VMs are started from templates where the VMM can
	WarmPool    int    // VMs of each kind that run already and wait to be taken; 0: none
}

// MostWarm bounds VMM.WarmPool.
const MostWarm = 16

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

			IdleAction: IdleStop,
			Checkpoint: CheckpointOff,
		},
		Limits: Limits{Events: 10_000, Checkpoints: 5, Templates: 4 << 30, StartMemory: 160 << 20, ImageSize: 64 << 30, ImageEntries: 4_000_000, DownloadSize: 32 << 30},
		VMM:    VMM{Driver: "qemu", Accelerator: AcceleratorAuto, Templates: true},
	}
}

// file is the shape of the TOML file. Sizes are text there; a nil pointer is a key that is not set.
type file struct {
	Defaults struct {
		Image    *string `toml:"image"`
		CPUs     *int    `toml:"cpus"`
		Memory   *string `toml:"memory"`
		Disk     *string `toml:"disk"`
		AutoStop *string `toml:"auto_stop"`

		IdleAction *string `toml:"idle_action"`
		Checkpoint *string `toml:"checkpoint"`
	} `toml:"defaults"`
	Limits struct {
		Events       *int    `toml:"events"`
		Checkpoints  *int    `toml:"checkpoints"`
		Templates    *string `toml:"templates"`
		StartMemory  *string `toml:"start_memory"`
		ImageSize    *string `toml:"image_size"`
		ImageEntries *int    `toml:"image_entries"`
		DownloadSize *string `toml:"download_size"`
	} `toml:"limits"`
	Mirror struct {
		Debian *string `toml:"debian"`
	} `toml:"mirror"`
	Trust struct {
		Keys []string `toml:"keys"`
	} `toml:"trust"`
	Registry struct {
		Insecure []string `toml:"insecure"`
	} `toml:"registry"`
	Catalogs []struct {
		Name string `toml:"name"`
		URL  string `toml:"url"`
		Key  string `toml:"key"`
	} `toml:"catalog"`
	VMM struct {
		Driver      *string `toml:"driver"`
		Accelerator *string `toml:"accelerator"`
		Templates   *string `toml:"templates"`
		WarmPool    *int    `toml:"warm_pool"`
	} `toml:"vmm"`
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
	if err != nil && strings.Contains(err.Error(), `(last key "catalog")`) { // the usual slip with arrays of tables
		return Config{}, fault.New(fault.Invalid, "%s: line %d: catalog is a list of tables: write [[catalog]]", path, lineOf(text, []string{"catalog"})).
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
	set(&c.Defaults.IdleAction, f.Defaults.IdleAction)
	set(&c.Defaults.Checkpoint, f.Defaults.Checkpoint)
	set(&c.Limits.Events, f.Limits.Events)
	set(&c.Limits.Checkpoints, f.Limits.Checkpoints)
	set(&c.Mirror.Debian, f.Mirror.Debian)
	set(&c.VMM.Driver, f.VMM.Driver)
	set(&c.VMM.Accelerator, f.VMM.Accelerator)
	set(&c.VMM.WarmPool, f.VMM.WarmPool)
	refuse := func(err error, key ...string) error {
		return fault.Wrap(fault.Invalid, err, "%s line %d: %s", path, lineOf(text, key), strings.Join(key, "."))
	}
	if err := setSize(&c.Defaults.Memory, f.Defaults.Memory, vm.MinMemory); err != nil {
		return refuse(err, "defaults", "memory")
	}
	if err := setSize(&c.Defaults.Disk, f.Defaults.Disk, vm.MinDisk); err != nil {
		return refuse(err, "defaults", "disk")
	}
	if err := setDuration(&c.Defaults.AutoStop, f.Defaults.AutoStop); err != nil {
		return refuse(err, "defaults", "auto_stop")
	}
	if err := setSize(&c.Limits.Templates, f.Limits.Templates, 0); err != nil {
		return refuse(err, "limits", "templates")
	}
	if off := f.Limits.StartMemory; off != nil && *off == "0" {
		c.Limits.StartMemory = 0
	} else if err := setSize(&c.Limits.StartMemory, off, 0); err != nil {
		return refuse(err, "limits", "start_memory")
	}
	if err := setSwitch(&c.VMM.Templates, f.VMM.Templates); err != nil {
		return refuse(err, "vmm", "templates")
	}
	if n := c.VMM.WarmPool; n < 0 || n > MostWarm {
		return refuse(fault.New(fault.Invalid, "%d is not between 0 and %d", n, MostWarm), "vmm", "warm_pool")
	}
	if n := c.Limits.Events; n < LeastEvents || n > MostEvents {
		return refuse(fault.New(fault.Invalid, "%d is not between %d and %d", n, LeastEvents, MostEvents), "limits", "events")
	}
	if err := c.checkCheckpoints(refuse); err != nil {
		return err
	}
	if err := c.applyImages(f, refuse); err != nil {
		return err
	}
	if err := c.applyCatalogs(path, text, f); err != nil {
		return err
	}
	if c.Defaults.CPUs < 1 {
		return refuse(errors.New("a vm needs at least 1 cpu"), "defaults", "cpus")
	}
	if c.Defaults.Image == "" {
		return refuse(errors.New("is empty"), "defaults", "image")
	}
	if a := c.Defaults.IdleAction; a != IdleStop && a != IdleSuspend {
		return refuse(fault.New(fault.Invalid, "%q is not stop or suspend", a), "defaults", "idle_action")
	}
	if a := c.VMM.Accelerator; !slices.Contains([]string{AcceleratorAuto, AcceleratorKVM, AcceleratorTCG}, a) {
		return refuse(fault.New(fault.Invalid, "%q is not auto, kvm or tcg", a), "vmm", "accelerator")
	}
	return nil
}

// checkCheckpoints checks what is said about automatic snapshots.
func (c *Config) checkCheckpoints(refuse func(err error, key ...string) error) error {
	if n := c.Limits.Checkpoints; n < 1 || n > MostCheckpoints {
		return refuse(fault.New(fault.Invalid, "%d is not between 1 and %d", n, MostCheckpoints), "limits", "checkpoints")
	}
	if p := c.Defaults.Checkpoint; p != CheckpointOff && p != CheckpointEachExec {
		return refuse(fault.New(fault.Invalid, "%q is not off or each-exec", p), "defaults", "checkpoint")
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

func setSwitch(to *bool, from *string) error {
	if from == nil {
		return nil
	}
	if *from != "on" && *from != "off" {
		return fault.New(fault.Invalid, "%q is not on or off", *from)
	}
	*to = *from == "on"
	return nil
}

func setDuration(to *time.Duration, from *string) error {
	if from == nil {
		return nil
	}
	d, err := time.ParseDuration(*from)
	if err != nil || d < 0 {
		return fault.New(fault.Invalid, "%q is not a duration such as 30m or 2h, or 0 for never", *from)
	}
	*to = d
	return nil
}

func unknownKey(path, text string, key toml.Key) error {
	f := fault.New(fault.Invalid, "%s line %d: unknown key %q", path, lineOf(text, key), key.String())
	if near := nearestKey(key.String()); near != "" {
		f.Message += ", did you mean " + near + "?"
	}
	return f.WithHint("${EDITOR:-vi} %s", path)
}

// nearestKey is the key or table that somebody most likely meant, or "".
func nearestKey(word string) string {
	var known []string
	for _, name := range append(keyNames(), "catalog.name", "catalog.url", "catalog.key") {
		if table, _, _ := strings.Cut(name, "."); !slices.Contains(known, table) {
			known = append(known, table)
		}
		known = append(known, name)
	}
	if near := nearest.Of(word, known); near != "" {
		return near
	}
	_, last, _ := strings.Cut(word, ".")
	for _, k := range known { // right key, wrong table or none
		if _, name, ok := strings.Cut(k, "."); ok && (name == last || name == word) {
			return k
		}
	}
	return ""
}

// lineOf is the number of the line on which key's value ends: the shortest prefix of the file that has the key. (The
// TOML library keeps positions to itself.)
func lineOf(text string, key []string) int {
	lines := strings.SplitAfter(text, "\n")
	for n := range lines {
		var ignored map[string]any
		meta, err := toml.Decode(strings.Join(lines[:n+1], ""), &ignored)
		if err == nil && slices.ContainsFunc(meta.Keys(), func(k toml.Key) bool { return slices.Equal(k, key) }) {
			return n + 1
		}
	}
	return len(lines)
}
