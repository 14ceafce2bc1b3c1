package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
)

// The oldest QEMU that is taken. microvm describes its devices by ACPI, which Debian's kernel needs, since 5.2; 6.2 is
// what the oldest distribution in support (Ubuntu 22.04) has, so nothing older is tried.
const (
	minMajor = 6
	minMinor = 2
)

// inspectTimeout bounds one run of QEMU that only prints something. It takes 25 ms.
const inspectTimeout = 10 * time.Second

// binaryFile is the cache of inspect, in Options.CacheDir.
const binaryFile = "qemu.json"

// binary is what a QEMU binary says of itself. Path, ModTime and Size tell whether it still is that binary.
type binary struct {
	Path    string    `json:"path"`
	ModTime time.Time `json:"mtime"`
	Size    int64     `json:"size"`
	Version string    `json:"version"`
	Microvm bool      `json:"microvm"` // has the machine type
}

// same reports whether b describes the file of other.
func (b binary) same(other binary) bool {
	return b.Path == other.Path && b.Size == other.Size && b.ModTime.Equal(other.ModTime)
}

// usable returns the fault of a QEMU that cannot be used, or nil.
func (b binary) usable() error {
	major, minor := splitVersion(b.Version)
	if major < minMajor || major == minMajor && minor < minMinor {
		return installFault("%s is version %s: %d.%d or newer is needed", b.Path, b.Version, minMajor, minMinor)
	}
	if !b.Microvm {
		return installFault("%s has no machine type microvm", b.Path)
	}
	return nil
}

// inspect returns what is known of the binary at path: from memory, from the cache file or by running it.
func (d *Driver) inspect(ctx context.Context, path string) (binary, error) {
	info, err := os.Stat(path)
	if err != nil {
		return binary{}, fault.Wrap(fault.Unavailable, err, "look at QEMU")
	}
	file := binary{Path: path, ModTime: info.ModTime(), Size: info.Size()}

	d.mu.Lock()
	known := d.binary
	d.mu.Unlock()
	if known.same(file) {
		return known, nil
	}
	cache := ""
	if d.opts.CacheDir != "" {
		cache = filepath.Join(d.opts.CacheDir, binaryFile)
		if err := atomicfile.ReadJSON(cache, &known); err == nil && known.same(file) {
			d.remember(known)
			return known, nil
		}
	}
	if err := run(ctx, &file); err != nil {
		return binary{}, err
	}
	d.remember(file)
	if cache != "" {
		if err := writeCache(cache, file); err != nil {
			d.opts.Log.Warn("the cache of QEMU's version cannot be written", "component", "qemu", "error", err)
		}
	}
	return file, nil
}

func (d *Driver) remember(b binary) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.binary = b
}

// writeCache writes v to path; the directory is made if it is missing.
func writeCache(path string, v any) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteJSON(path, v)
}

// run asks the binary for its version and machine types.
func run(ctx context.Context, b *binary) error {
	out, err := output(ctx, b.Path, "--version")
	if err != nil {
		return err
	}
	if b.Version = parseVersion(out); b.Version == "" {
		return installFault("%s does not say which version of QEMU it is", b.Path)
	}
	machines, err := output(ctx, b.Path, "-machine", "help")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(machines)) {
		if name, _, _ := strings.Cut(line, " "); name == "microvm" {
			b.Microvm = true
		}
	}
	return nil
}

// output runs the binary and returns what it prints.
func output(ctx context.Context, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environment()
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "run %s %s", path, args[0])
	}
	err = errors.Join(err, errors.New(lastLine(stderr.String())))
	return nil, fault.Wrap(fault.Unavailable, err, "%s does not run", path)
}

// environment is all that QEMU gets to see: nothing of the user's secrets is in it.
func environment() []string { return []string{"LC_ALL=C", "PATH=/usr/bin:/bin"} }

// versionPattern matches the first line of qemu-system-x86_64 --version, with or without the packager's version.
var versionPattern = regexp.MustCompile(`(?m)^QEMU emulator version (\d+\.\d+[.\d]*)`)

// parseVersion returns "7.2.22", or "" for what is not QEMU's answer.
func parseVersion(out []byte) string {
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return ""
	}
	return string(m[1])
}

// splitVersion returns the first two numbers of a version.
func splitVersion(version string) (major, minor int) {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return 0, 0
	}
	major, _ = strconv.Atoi(parts[0])
	minor, _ = strconv.Atoi(parts[1])
	return major, minor
}

// lastLine returns the last line of text that says anything.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
