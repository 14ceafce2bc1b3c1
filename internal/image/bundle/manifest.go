package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode"

	"banger/internal/fault"
	"banger/internal/image/source"
	"banger/internal/vm"
)

// Schema is the version of the manifest that this program reads and writes.
const Schema = 1

// Names and media types of what is in a bundle, in their order.
const (
	ManifestName = "manifest.json"
	RootfsName   = "rootfs.tar"
	KernelName   = "kernel.tar"

	RootfsType = "application/vnd.banger.rootfs.v1.tar" // flat: no whiteouts, no path twice
	KernelType = "application/vnd.banger.kernel.v1.tar" // the files of a kernel's directory
)

// Manifest is the first entry of a bundle and says what the others are.
type Manifest struct {
	Schema      int           `json:"schema"`
	Name        string        `json:"name"` // for people: the name on a host is chosen there
	Description string        `json:"description,omitempty"`
	Arch        string        `json:"arch"` // amd64, arm64
	Created     time.Time     `json:"created"`
	Config      source.Config `json:"config"`
	Kernel      string        `json:"kernel,omitempty"` // kernel reference; empty: the default kernel
	Parts       []Part        `json:"parts"`
}

// Part is an entry behind the manifest.
type Part struct {
	Name      string `json:"name"`
	MediaType string `json:"media_type"`
	SHA256    string `json:"sha256"` // hexadecimal
	Size      int64  `json:"size"`   // uncompressed
}

// maxManifest is the longest manifest. An environment of any sense is far below.
const maxManifest = 1 << 20

// maxKernel is the most that a kernel part may have; a distribution's kernel with all modules and without its debugging
// information is below 500 MB.
const maxKernel = 4 << 30

// patterns are those of the manifest's words.
type patterns struct{ sha256, arch, kernel *regexp.Regexp }

func newPatterns() patterns {
	return patterns{
		sha256: regexp.MustCompile(`^[0-9a-f]{64}$`),
		arch:   regexp.MustCompile(`^[a-z0-9]{1,16}$`),
		kernel: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`),
	}
}

// ParseManifest reads and checks a manifest against the limits.
func ParseManifest(data []byte, limits Limits) (Manifest, error) {
	var m Manifest
	// The version first, by itself: whatever else a newer one has changed, this is the message.
	var version struct {
		Schema *int `json:"schema"`
	}
	if err := decode(data, &version); err != nil {
		return m, fault.New(fault.Invalid, "manifest.json cannot be read: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	switch {
	case version.Schema == nil:
		return m, fault.New(fault.Invalid, "manifest.json says no schema: this is not a bundle of banger")
	case *version.Schema != Schema:
		return m, fault.New(fault.Invalid, "manifest.json has schema %d, this banger reads %d", *version.Schema, Schema).WithHint("banger version")
	}
	if err := decode(data, &m); err != nil {
		return m, fault.New(fault.Invalid, "manifest.json cannot be read: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if err := m.check(limits.withDefaults()); err != nil {
		return m, fault.Context(err, "manifest.json")
	}
	return m, nil
}

// decode reads one JSON value and nothing behind it.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}

func (m *Manifest) check(limits Limits) error {
	p := newPatterns()
	switch {
	case len(m.Name) > 255 || strings.ContainsFunc(m.Name, unicode.IsControl):
		return fault.New(fault.Invalid, "its name is not one")
	case len(m.Description) > 1000 || strings.ContainsFunc(m.Description, unicode.IsControl):
		return fault.New(fault.Invalid, "its description is not one line")
	case !p.arch.MatchString(m.Arch):
		return fault.New(fault.Invalid, "its architecture %.40q is not one", m.Arch)
	case m.Kernel != "" && !p.kernel.MatchString(m.Kernel):
		return fault.New(fault.Invalid, "its kernel %.140q is not a kernel's name", m.Kernel)
	case len(m.Parts) == 0 || m.Parts[0].Name != RootfsName:
		return fault.New(fault.Invalid, "its first part is not %s", RootfsName)
	case len(m.Parts) > 2:
		return fault.New(fault.Invalid, "it lists %d parts: more than %s and %s", len(m.Parts), RootfsName, KernelName)
	case len(m.Parts) == 2 && m.Parts[1].Name != KernelName:
		return fault.New(fault.Invalid, "its second part is %.40q and not %s", m.Parts[1].Name, KernelName)
	}
	for i, part := range m.Parts {
		kind, most := RootfsType, limits.Size
		if i == 1 {
			kind, most = KernelType, maxKernel
		}
		if err := part.check(p, kind, most); err != nil {
			return err
		}
	}
	return m.Config.Check()
}

func (p Part) check(known patterns, kind string, most int64) error {
	switch {
	case p.MediaType != kind:
		return fault.New(fault.Invalid, "%s has the unknown media type %.80q, not %s", p.Name, p.MediaType, kind)
	case !known.sha256.MatchString(p.SHA256):
		return fault.New(fault.Invalid, "%s has no sha256 of 64 hexadecimal digits", p.Name)
	case p.Size <= 0:
		return fault.New(fault.Invalid, "%s has %d bytes", p.Name, p.Size)
	case p.Size > most && kind == RootfsType:
		return fault.New(fault.Invalid, "%s has %s, more than the limit of %s", p.Name, size(p.Size), size(most)).
			WithHint("banger config set limits.image_size %s", bigger(p.Size))
	case p.Size > most:
		return fault.New(fault.Invalid, "%s has %s, more than the %s that a kernel can have", p.Name, size(p.Size), size(most))
	}
	return nil
}

func size(n int64) string { return vm.FormatSize(uint64(n)) }

// bigger is n in whole gigabytes, rounded up, as a setting takes it.
func bigger(n int64) string { return fmt.Sprintf("%dG", n>>30+1) }
