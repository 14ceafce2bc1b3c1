package image

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/image/webcatalog"
	"banger/internal/nearest"
	"banger/internal/transfer"
)

// CatalogConfig is a catalog of the user's own (config, [[catalog]]): Name in Name/IMAGE, the URL of its catalog.json and
// the minisign public key that this is signed with.
type CatalogConfig = webcatalog.Config

// Index is everything that can be pulled by name: the embedded catalog and the configured ones. The fields are fixed; it
// may be used by several goroutines.
type Index struct {
	Catalogs []CatalogConfig  // in the order of preference
	Dir      string           // where copies are kept (paths.Catalogs)
	MaxAge   time.Duration    // how old a copy may be before it is asked for anew; 0: an hour
	Client   *transfer.Client // nil: one that gives up soon
}

// loaded is what came of one configured catalog.
type loaded struct {
	list    webcatalog.List
	warning error
	err     error // there is no list
}

// load reads all the given catalogs at once and waits for all.
func (x *Index) load(ctx context.Context, catalogs []CatalogConfig, refresh bool) []loaded {
	cache := &webcatalog.Cache{Dir: x.Dir, MaxAge: x.MaxAge, Client: x.Client}
	out := make([]loaded, len(catalogs))
	var wg sync.WaitGroup
	for i, cfg := range catalogs {
		wg.Go(func() {
			l := &out[i] // each goroutine has its own
			l.list, l.warning, l.err = cache.Load(ctx, cfg, refresh)
		})
	}
	wg.Wait()
	return out
}

// Catalog returns every image for this host that can be pulled by name, the default first, those of configured catalogs by
// their short name if nothing before them has it and as CATALOG/NAME otherwise. refresh asks the catalogs anew
// whatever the age of the copies. A catalog that cannot be reached or verified is a warning; its last copy, if there
// is one, serves.
func (x *Index) Catalog(ctx context.Context, refresh bool) (entries []Entry, warnings []string) {
	all := x.load(ctx, x.Catalogs, refresh)
	return merge(x.Catalogs, all), warningsOf(all)
}

func warningsOf(all []loaded) (out []string) {
	for _, l := range all {
		for _, err := range []error{l.warning, l.err} {
			if err != nil {
				out = append(out, err.Error())
			}
		}
	}
	return out
}

// merge puts the lists behind the embedded catalog. The first that has a name keeps it.
func merge(catalogs []CatalogConfig, all []loaded) []Entry {
	entries := Catalog()
	for i, l := range all {
		for _, e := range l.list.Entries {
			if e.Arch != runtime.GOARCH {
				continue
			}
			entry := entryOf(catalogs[i].Name, e)
			if slices.ContainsFunc(entries, func(other Entry) bool { return other.Name == e.Name }) {
				entry.Name = catalogs[i].Name + "/" + e.Name
			}
			entries = append(entries, entry)
		}
	}
	return entries
}

func entryOf(catalog string, e webcatalog.Entry) Entry {
	return Entry{
		Name: e.Name, Description: e.Description, Arch: e.Arch, Kernel: e.Kernel, Catalog: catalog,
		Sources: []Origin{{Kind: KindBundle, Location: e.URL, SHA256: e.SHA256, Size: e.Size}},
	}
}

// Resolve is the function Resolve with the configured catalogs: their names go after the embedded ones and before
// registry references, and CATALOG/NAME goes before a registry reference. It asks the network only for a word that the
// embedded catalog does not have and for a word behind a catalog's name.
//
// A word is not taken for a registry's while a catalog that might have it cannot be read: that would be another image.
func (x *Index) Resolve(ctx context.Context, ref string) (e Entry, warnings []string, err error) {
	if err := checkText(ref); err != nil {
		return Entry{}, nil, err
	}
	if prefix, rest, ok := strings.Cut(ref, "/"); ok && isWord(rest) {
		i := slices.IndexFunc(x.Catalogs, func(c CatalogConfig) bool { return c.Name == prefix })
		if i >= 0 {
			return x.resolveIn(ctx, x.Catalogs[i], rest)
		}
	}
	embedded := slices.ContainsFunc(Catalog(), func(e Entry) bool { return e.Name == ref })
	if !isWord(ref) || embedded || len(x.Catalogs) == 0 {
		e, err := resolve(ref, Catalog())
		return e, nil, err
	}
	all := x.load(ctx, x.Catalogs, false)
	if ctx.Err() != nil {
		return Entry{}, nil, fault.Context(context.Cause(ctx), "read the catalogs")
	}
	entries := merge(x.Catalogs, all)
	if slices.ContainsFunc(entries, func(e Entry) bool { return e.Name == ref }) {
		e, err := resolve(ref, entries)
		return e, warningsOf(all), err
	}
	for i, l := range all {
		if l.err != nil {
			return Entry{}, nil, fault.Wrap(fault.Unavailable, l.err, "no image is called %q, unless catalog %s has it", ref, x.Catalogs[i].Name).
				WithHint("banger image pull docker.io/library/%s", ref)
		}
	}
	e, err = resolve(ref, entries)
	return e, warningsOf(all), err
}

// resolveIn finds CATALOG/NAME.
func (x *Index) resolveIn(ctx context.Context, cfg CatalogConfig, word string) (Entry, []string, error) {
	l := x.load(ctx, []CatalogConfig{cfg}, false)
	if err := l[0].err; err != nil {
		return Entry{}, nil, err
	}
	var names []string
	other := ""
	for _, e := range l[0].list.Entries {
		switch {
		case e.Name == word && e.Arch == runtime.GOARCH:
			entry := entryOf(cfg.Name, e)
			entry.Name = cfg.Name + "/" + word
			return entry, warningsOf(l), nil
		case e.Name == word:
			other = e.Arch
		case e.Arch == runtime.GOARCH:
			names = append(names, e.Name)
		}
	}
	if other != "" {
		return Entry{}, nil, fault.New(fault.NotFound, "catalog %s has image %s for %s and not for %s", cfg.Name, word, other, runtime.GOARCH).
			WithHint(catalogHint)
	}
	near := nearest.Of(word, names)
	if near != "" {
		near = "; did you mean " + cfg.Name + "/" + near + "?"
	}
	return Entry{}, nil, fault.New(fault.NotFound, "catalog %s has no image %q%s", cfg.Name, word, near).WithHint("banger image catalog --refresh")
}
