package webcatalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"

	"banger/internal/fault"
	"banger/internal/transfer"
)

// Schema is the version of catalog.json that this program reads.
const Schema = 1

// Limits of what a catalog may hold.
const (
	maxList    = 4 << 20
	maxEntries = 10_000
)

// List is a catalog.json.
type List struct {
	Schema  int       `json:"schema"`
	Created time.Time `json:"created"` // one that is older than the copy at hand is not taken; may be left out
	Entries []Entry   `json:"entries"`
}

// Entry is an image of a catalog for one architecture.
type Entry struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Arch        string `json:"arch"`             // amd64, arm64
	Kernel      string `json:"kernel,omitempty"` // kernel reference; empty: what the bundle says
	URL         string `json:"url"`              // of the bundle; relative to the catalog's own
	SHA256      string `json:"sha256"`           // of that file, hexadecimal
	Size        int64  `json:"size"`             // of that file
}

// ParseList reads and checks the catalog that came from base. The URLs of its entries are absolute afterwards.
func ParseList(data []byte, base string) (List, error) {
	var l List
	var version struct {
		Schema *int `json:"schema"`
	}
	if err := decode(data, &version); err != nil {
		return List{}, unreadable(err)
	}
	switch {
	case version.Schema == nil:
		return List{}, fault.New(fault.Invalid, "it says no schema: it is not a catalog of banger")
	case *version.Schema != Schema:
		return List{}, fault.New(fault.Invalid, "it has schema %d, this banger reads %d", *version.Schema, Schema).WithHint("banger version")
	}
	if err := decode(data, &l); err != nil {
		return List{}, unreadable(err)
	}
	root, err := url.Parse(base)
	if err != nil {
		return List{}, fault.New(fault.Invalid, "%q is not a URL", transfer.Redact(base))
	}
	if len(l.Entries) > maxEntries {
		return List{}, fault.New(fault.Invalid, "it has %d entries, more than %d", len(l.Entries), maxEntries)
	}
	seen := make(map[[2]string]bool, len(l.Entries))
	known := newPatterns()
	for i := range l.Entries {
		e := &l.Entries[i]
		if err := e.check(known, root); err != nil {
			return List{}, fault.Context(err, "entry %d (%.80q)", i+1, e.Name)
		}
		if seen[[2]string{e.Name, e.Arch}] {
			return List{}, fault.New(fault.Invalid, "it has %s for %s twice", e.Name, e.Arch)
		}
		seen[[2]string{e.Name, e.Arch}] = true
	}
	return l, nil
}

func unreadable(err error) error {
	return fault.New(fault.Invalid, "it cannot be read: %s", strings.TrimPrefix(err.Error(), "json: "))
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

// patterns are those of an entry's words.
type patterns struct{ name, arch, kernel, sha256 *regexp.Regexp }

func newPatterns() patterns {
	return patterns{
		name:   regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`),
		arch:   regexp.MustCompile(`^[a-z0-9]{1,16}$`),
		kernel: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`),
		sha256: regexp.MustCompile(`^[0-9a-f]{64}$`),
	}
}

// check checks an entry and makes its URL absolute.
func (e *Entry) check(known patterns, base *url.URL) error {
	switch {
	case len(e.Name) > 128 || !known.name.MatchString(e.Name):
		return fault.New(fault.Invalid, "its name is not one: lower-case letters and digits, with '.', '_' or '-' between them")
	case len(e.Description) > 200 || strings.ContainsFunc(e.Description, unicode.IsControl):
		return fault.New(fault.Invalid, "its description is not one line of up to 200 bytes")
	case !known.arch.MatchString(e.Arch):
		return fault.New(fault.Invalid, "its architecture %.40q is not one", e.Arch)
	case e.Kernel != "" && !known.kernel.MatchString(e.Kernel):
		return fault.New(fault.Invalid, "its kernel %.140q is not a kernel's name", e.Kernel)
	case !known.sha256.MatchString(e.SHA256):
		return fault.New(fault.Invalid, "it has no sha256 of 64 hexadecimal digits")
	case e.Size <= 0:
		return fault.New(fault.Invalid, "it has %d bytes", e.Size)
	}
	u, err := base.Parse(e.URL)
	if err != nil || e.URL == "" {
		return fault.New(fault.Invalid, "its url %.80q is not one", transfer.Redact(e.URL))
	}
	e.URL = u.String()
	return transfer.CheckURL(e.URL)
}
