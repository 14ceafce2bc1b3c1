package vm

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/fault"
)

// Limits of a VM that hold for every VMM and image. A driver may allow fewer CPUs.
const (
	MinMemory = 128 << 20 // bytes; what the kernel, its modules and the agent need to come up
	MinDisk   = 256 << 20 // bytes; an ext4 file system with a journal and room to work
	MaxDisk   = 16 << 40  // bytes; ext4 with 4 KiB blocks
)

// Spec is what a user asks for, with every default filled in.
type Spec struct {
	Name    Name              `json:"name"`
	Image   string            `json:"image"`  // image reference
	Kernel  string            `json:"kernel"` // kernel reference; empty means the image's
	CPUs    int               `json:"cpus"`
	Memory  uint64            `json:"memory_bytes"`
	Disk    uint64            `json:"disk_bytes"` // virtual size of the VM disk
	Remove  bool              `json:"remove_on_exit"`
	Env     []string          `json:"env,omitempty"` // KEY=VALUE
	User    string            `json:"user,omitempty"`
	Workdir string            `json:"workdir,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`

	Description string        `json:"description,omitempty"`
	Restart     RestartPolicy `json:"restart,omitempty"`
	AutoStop    time.Duration `json:"auto_stop,omitempty"` // unused for so long, it is stopped; 0: never

	// NoFork, if it is not empty, says why no other VM may be made of this one: it holds something that must not be copied.
	NoFork string `json:"no_fork,omitempty"`

	Purpose Purpose `json:"purpose,omitempty"`
}

// Origin is what a VM was forked from.
type Origin struct {
	ID   ID        `json:"id"`
	Name Name      `json:"name"` // when it was
	At   time.Time `json:"at"`
	// StillUS is for how long that VM stood still for it, in microseconds.
	StillUS int64 `json:"still_us,omitempty"`
}

// Purpose is what a VM is for. A user's VM has none. The others are the daemon's own: they serve one operation, are not
// listed, and end with the daemon.
type Purpose string

// The purposes of the daemon's own VMs.
const (
	PurposeBuild  Purpose = "build"  // it runs a step of a build
	PurposeExport Purpose = "export" // it packs the root file system of an image
	PurposePool   Purpose = "pool"   // it waits to become somebody's
)

// Hidden reports whether the VM is one of the daemon's own.
func (s *Spec) Hidden() bool { return s.Purpose != "" }

// RestartPolicy says what happens when a VM ends that nobody stopped. Empty means RestartNo.
type RestartPolicy string

// The restart policies.
const (
	RestartNo        RestartPolicy = "no"
	RestartOnFailure RestartPolicy = "on-failure" // it is started again, with growing pauses
	RestartAlways    RestartPolicy = "always"     // likewise, and also when the host has booted
)

// Validate checks what can be checked without a host: sizes, counts, environment. It returns a fault of class Invalid.
func (s *Spec) Validate() error {
	if s.CPUs < 1 {
		return fault.New(fault.Invalid, "a vm needs at least 1 cpu, not %d", s.CPUs)
	}
	if s.Memory < MinMemory {
		return fault.New(fault.Invalid, "memory of %s is too small: the kernel needs at least %s", FormatSize(s.Memory),
			FormatSize(MinMemory)).WithHint("banger vm run --memory 512M")
	}
	if s.Disk < MinDisk || s.Disk > MaxDisk {
		return fault.New(fault.Invalid, "a disk of %s is not possible: it can be %s to %s", FormatSize(s.Disk),
			FormatSize(MinDisk), FormatSize(MaxDisk)).WithHint("banger vm run --disk 10G")
	}
	if !slices.Contains([]RestartPolicy{"", RestartNo, RestartOnFailure, RestartAlways}, s.Restart) {
		return fault.New(fault.Invalid, "unknown restart policy %q: one of no, on-failure, always", s.Restart).
			WithHint("banger vm set --restart on-failure %s", s.Name)
	}
	if s.AutoStop < 0 {
		return fault.New(fault.Invalid, "an idle time of %s is not possible", s.AutoStop).
			WithHint("banger vm set --auto-stop 30m %s", s.Name)
	}
	if len(s.NoFork) > 256 {
		return fault.New(fault.Invalid, "the reason why a vm is not to be forked is longer than 256 bytes").
			WithHint("banger vm set --no-fork secrets %s", s.Name)
	}
	for key := range s.Labels {
		if key == "" || strings.ContainsAny(key, "= \t\n") || len(key) > 128 {
			return fault.New(fault.Invalid, "label %q is not a name: no spaces, no '='", key)
		}
	}
	for _, kv := range s.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" || strings.ContainsRune(kv, 0) {
			return fault.New(fault.Invalid, "environment %q is not NAME=VALUE", kv)
		}
	}
	return nil
}

// ParseSize reads a size for people: a number with an optional unit of K, M, G or T (binary, an "iB" or "B" behind it
// is allowed). Without a unit it is in bytes.
func ParseSize(s string) (uint64, error) {
	bad := fault.New(fault.Invalid, "size %q is not a number with K, M, G or T behind it, such as 512M or 10G", s)
	text := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(s)), "B"), "I")
	shift := 0
	if n := len(text); n > 0 {
		if i := strings.IndexByte("KMGT", text[n-1]); i >= 0 {
			shift, text = 10*(i+1), text[:n-1]
		}
	}
	number, err := strconv.ParseFloat(text, 64)
	if err != nil || !(number > 0) || number*float64(uint64(1)<<shift) > 1<<60 {
		return 0, bad
	}
	return uint64(number * float64(uint64(1)<<shift)), nil
}

// FormatSize prints n bytes for people with a binary unit: "512M", "1.5G".
func FormatSize(n uint64) string {
	units := "BKMGTPE"
	value, i := float64(n), 0
	for value >= 1024 && i < len(units)-1 {
		value /= 1024
		i++
	}
	text := strconv.FormatFloat(value, 'f', 1, 64)
	return strings.TrimSuffix(text, ".0") + units[i:i+1]
}
