// Package webcatalog reads lists of images that somebody serves on a web server: a signed catalog.json, which names
// bundles by their URL and sha256. docs/bundle.md describes the format.
//
// A copy of each list is kept, with its signature in the same file, and verified each time it is read, by the key that
// the configuration has now. A server that cannot be reached, or that sends what is not signed, leaves the copy in use.
package webcatalog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/signature"
	"banger/internal/transfer"
)

// Config is a catalog of the user's.
type Config struct {
	Name string // lower-case letters, digits and dashes
	URL  string // of catalog.json; the signature is beside it
	Key  string // minisign public key
}

// Check reports what is wrong with a configuration.
func (c Config) Check() error {
	if !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(c.Name) || len(c.Name) > 64 {
		return fault.New(fault.Invalid, "%q is not a catalog's name: lower-case letters and digits, with dashes between them", c.Name)
	}
	if c.Name == "localhost" || c.Name == "library" {
		return fault.New(fault.Invalid, "%q means something else in image references and cannot be a catalog's name", c.Name)
	}
	if err := transfer.CheckURL(c.URL); err != nil {
		return fault.Context(err, "catalog %s", c.Name)
	}
	_, err := signature.ParseKey(c.Key)
	return fault.Context(err, "catalog %s", c.Name)
}

// DefaultMaxAge is how old a copy may be before its server is asked again.
const DefaultMaxAge = time.Hour

const (
	timeout    = 20 * time.Second // of all that one Load asks the network for
	retryAfter = time.Minute      // an unreachable server is left alone for so long, if there is a copy
	maxCopy    = 2*maxList + 64<<10
)

// Cache keeps copies of catalogs. The fields are fixed; it may be used by several goroutines and processes.
type Cache struct {
	Dir    string           // made when it is needed
	MaxAge time.Duration    // 0: DefaultMaxAge
	Client *transfer.Client // nil: one that gives up soon
	Now    func() time.Time // nil: time.Now
}

// copyFile is a copy on disk. All of it is in one file, so that a list and its signature always belong together.
type copyFile struct {
	URL       string           `json:"url"`
	Version   transfer.Version `json:"version"`
	Checked   time.Time        `json:"checked"`           // when the server last said that this is its list
	Tried     time.Time        `json:"tried"`             // when it was last asked
	Problem   string           `json:"problem,omitempty"` // what came of that, if not this list
	Catalog   []byte           `json:"catalog"`
	Signature []byte           `json:"signature"`
}

// Load returns the list of a catalog. refresh asks the server however old the copy is. The warning says why the server's
// list was not taken although it should have been, when there is a copy to serve instead; without one that is the error.
func (c *Cache) Load(ctx context.Context, cfg Config, refresh bool) (list List, warning, err error) {
	if err := cfg.Check(); err != nil {
		return List{}, nil, err
	}
	old, oldList, copyErr := c.read(ctx, cfg)
	now := c.now()
	if copyErr == nil && !refresh && c.recent(old, now) {
		if old.Problem != "" {
			warning = errors.New(old.Problem)
		}
		return oldList, warning, nil
	}
	fresh, freshList, err := c.fetch(ctx, cfg, old, oldList)
	if err == nil {
		fresh.Checked, fresh.Tried, fresh.Problem = now, now, ""
		return freshList, c.write(cfg, fresh), nil
	}
	err = fault.Context(err, "catalog %s", cfg.Name)
	if ctx.Err() != nil || copyErr != nil {
		return List{}, nil, err
	}
	old.Tried, old.Problem = now, err.Error()
	return oldList, errors.Join(err, c.write(cfg, old)), nil
}

// recent reports whether the server need not be asked: it has been, with success or a moment ago without.
func (c *Cache) recent(f copyFile, now time.Time) bool {
	age := now.Sub(f.Checked)
	return f.Problem == "" && age >= 0 && age < c.maxAge() || f.Problem != "" && now.Sub(f.Tried).Abs() < retryAfter
}

func (c *Cache) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

func (c *Cache) maxAge() time.Duration {
	if c.MaxAge == 0 {
		return DefaultMaxAge
	}
	return c.MaxAge
}

// path is that of the copy: another URL or key is another file.
func (c *Cache) path(cfg Config) string {
	sum := sha256.Sum256([]byte(cfg.URL + "\n" + cfg.Key))
	return filepath.Join(c.Dir, cfg.Name+"-"+hex.EncodeToString(sum[:6])+".json")
}

// read reads and verifies the copy. Whatever is wrong with it, it is as good as none.
func (c *Cache) read(ctx context.Context, cfg Config) (copyFile, List, error) {
	info, err := os.Stat(c.path(cfg))
	if err != nil {
		return copyFile{}, List{}, err
	}
	if info.Size() > maxCopy {
		return copyFile{}, List{}, fs.ErrInvalid
	}
	data, err := os.ReadFile(c.path(cfg))
	if err != nil {
		return copyFile{}, List{}, err
	}
	var f copyFile
	if err := json.Unmarshal(data, &f); err != nil || f.URL != cfg.URL {
		return copyFile{}, List{}, fs.ErrInvalid
	}
	list, err := f.verified(ctx, cfg)
	if err != nil {
		return copyFile{}, List{}, err
	}
	return f, list, nil
}

// write replaces the copy. That it cannot is a warning: the list itself is good.
func (c *Cache) write(cfg Config, f copyFile) error {
	data, err := json.Marshal(f)
	if err == nil {
		err = os.MkdirAll(c.Dir, 0o700)
	}
	if err == nil {
		err = atomicfile.Write(c.path(cfg), data, 0o600)
	}
	return fault.Context(err, "keep a copy of catalog %s", cfg.Name)
}

// verified checks the signature and then reads the list.
func (f copyFile) verified(ctx context.Context, cfg Config) (List, error) {
	key, err := signature.ParseKey(cfg.Key)
	if err != nil {
		return List{}, err
	}
	sig, err := signature.Parse("catalog.json"+signature.Suffix, f.Signature)
	if err == nil {
		err = sig.Verify(ctx, "catalog.json", bytes.NewReader(f.Catalog), []signature.Key{key})
	}
	if err != nil {
		return List{}, fault.Wrap(fault.Denied, err, "%s", transfer.Redact(cfg.URL))
	}
	list, err := ParseList(f.Catalog, cfg.URL)
	return list, fault.Context(err, "%s", transfer.Redact(cfg.URL))
}

// fetch asks the server for a list newer than the copy.
func (c *Cache) fetch(ctx context.Context, cfg Config, old copyFile, oldList List) (copyFile, List, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fault.New(fault.Timeout, "no answer within %v", timeout))
	defer cancel()
	client := c.Client
	if client == nil {
		client = &transfer.Client{Stall: timeout / 2, Backoff: []time.Duration{500 * time.Millisecond}}
	}
	resp, err := client.Get(ctx, cfg.URL, maxList, old.Version)
	if err != nil {
		return copyFile{}, List{}, err
	}
	if resp.Unchanged {
		return old, oldList, nil
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return copyFile{}, List{}, err
	}
	u.Path, u.RawPath = u.Path+signature.Suffix, ""
	sig, err := client.Get(ctx, u.String(), signature.MaxSize, transfer.Version{})
	if fault.Is(err, fault.NotFound) {
		return copyFile{}, List{}, fault.Wrap(fault.Denied, err, "it is not signed")
	}
	if err != nil {
		return copyFile{}, List{}, err
	}
	f := copyFile{URL: cfg.URL, Version: resp.Version, Catalog: resp.Body, Signature: sig.Body}
	list, err := f.verified(ctx, cfg)
	if err != nil {
		return copyFile{}, List{}, err
	}
	// A signature says nothing of its age: whoever controls the way could serve the list of last year.
	if list.Created.Before(oldList.Created) {
		return copyFile{}, List{}, fault.New(fault.Denied, "%s is of %s, older than the copy that is here (%s)", transfer.Redact(cfg.URL),
			list.Created.Format(time.DateTime), oldList.Created.Format(time.DateTime))
	}
	return f, list, nil
}
