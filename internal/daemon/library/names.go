package library

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/store"
)

// namesFile is beside the manifest.
const namesFile = "names.json"

// names are what stands for one digest, with the times since when. The digest itself among them means that it is kept
// without a name.
type names map[string]time.Time

type namesRecord struct {
	Names names `json:"names"`
}

// readNames reads the names file in dir. ok is false when there is none (a directory of an older banger).
func readNames(dir string) (n names, ok bool, err error) {
	var r namesRecord
	err = atomicfile.ReadJSON(filepath.Join(dir, namesFile), &r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return r.Names, err == nil, err
}

func writeNames(dir string, n names) error {
	if err := atomicfile.WriteJSON(filepath.Join(dir, namesFile), namesRecord{n}); err != nil {
		return fault.Wrap(fault.Internal, err, "write the names of %s", filepath.Base(dir))
	}
	return nil
}

// namesOf returns what the store says of a digest.
func (l *Library) namesOf(ctx context.Context, digest string) (names, error) {
	rows, err := l.shelf.store.Artifacts(ctx, l.kind)
	if err != nil {
		return nil, err
	}
	n := names{}
	for _, a := range rows {
		if a.Digest == digest {
			n[a.Name] = a.CreatedAt
		}
	}
	return n, nil
}

// with and without return a copy with one name more or less. A digest that has a name need not be kept without one.
func (n names) with(a store.Artifact) names {
	n = maps.Clone(n)
	if a.Unnamed() && len(n) > 0 {
		return n
	}
	if !a.Unnamed() {
		delete(n, a.Digest)
	}
	n[a.Name] = a.CreatedAt
	return n
}

func (n names) without(name string) names {
	n = maps.Clone(n)
	delete(n, name)
	return n
}

// real are the names without the digest, in their order.
func (n names) real(digest string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(n)), func(name string) bool { return name == digest })
}

func (n names) equal(other names) bool {
	return maps.EqualFunc(n, other, func(a, b time.Time) bool { return a.Equal(b) })
}

// syncNames brings the names file of a digest in line with the store. A failure is logged: the next daemon does it.
func (l *Library) syncNames(ctx context.Context, digest string) {
	dir := l.dir(digest)
	want, err := l.namesOf(ctx, digest)
	if err == nil {
		if have, ok, readErr := readNames(dir); readErr != nil || !ok || !have.equal(want) {
			err = writeNames(dir, want)
		}
	}
	if err != nil && ctx.Err() == nil {
		l.shelf.log.WarnContext(ctx, "cannot write a names file", "kind", l.kind, "digest", digest, "error", err)
	}
}
