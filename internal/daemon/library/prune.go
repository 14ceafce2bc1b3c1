package library

import (
	"context"

	"banger/internal/fault"
	"banger/internal/image/blob"
)

// Pruned is something that was, or would be, removed.
type Pruned struct {
	Kind   string // "image", "layer", "build-step", ...
	Name   string
	Digest string // of an image
	Bytes  uint64 // on the host
}

// Prune removes what is kept without a name and no VM uses, with all also what has names. Registered images stay: they
// take no space, and only their owner knows them. With dryRun nothing happens but the answer.
func (l *Library) Prune(ctx context.Context, all, dryRun bool, may func(digest string) bool) ([]Pruned, error) {
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	list, err := l.List(ctx)
	if err != nil {
		return nil, err
	}
	var doomed []Entry
	var dirs []string
	for _, e := range list {
		if !e.Busy && !e.Unmanaged && (len(e.Names) == 0 || all) && may(e.Digest) {
			doomed, dirs = append(doomed, e), append(dirs, e.Dir)
		}
	}
	var out []Pruned
	free := reclaimable(dirs)
	for _, e := range doomed {
		if !dryRun {
			err := l.drop(ctx, e)
			if fault.Is(err, fault.Conflict) { // a vm has come meanwhile
				continue
			}
			if err != nil {
				return out, err
			}
		}
		out = append(out, Pruned{string(l.kind), e.Ref(), e.Digest, free[e.Dir]})
	}
	return out, nil
}

// drop forgets every name of an entry and removes its directory. The caller holds the shelf's lock.
func (l *Library) drop(ctx context.Context, e Entry) error {
	ctx = context.WithoutCancel(ctx)
	have, err := l.namesOf(ctx, e.Digest)
	if err != nil {
		return err
	}
	for name := range have {
		found := Found{name, e.Digest}
		if err := l.forget(ctx, found, have); err != nil {
			return err
		}
		have = have.without(name)
	}
	l.collectLocked(ctx, e.Digest)
	l.passed(ctx, StepForgetGone)
	return nil
}

// PruneBlobs removes the blobs that no image refers to. While an operation counts on blobs (UseBlobs) they all stay.
// without are the digests of images that count as gone already: those that a dry run would remove before. before is done
// first, when nobody counts on blobs: what refers to them besides images goes then; it may be nil.
func (l *Library) PruneBlobs(ctx context.Context, blobs *blob.Store, dryRun bool, without map[string]bool, before func() error) ([]Pruned, error) {
	if !l.shelf.blobs.TryLock() {
		return nil, nil
	}
	defer l.shelf.blobs.Unlock()
	if before != nil {
		if err := before(); err != nil {
			return nil, err
		}
	}
	used := map[string]bool{}
	for _, dir := range entries(l.root) {
		a, err := l.source.Load(dir)
		if err != nil || without[a.Digest] {
			continue
		}
		for _, layer := range a.Layers {
			used[layer.Digest] = true
		}
	}
	list, err := blobs.List()
	if err != nil {
		return nil, err
	}
	var out []Pruned
	for _, b := range list {
		if used[b.Digest] {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return out, err
		}
		if !dryRun {
			if err := blobs.Remove(b.Digest); err != nil {
				return out, err
			}
		}
		out = append(out, Pruned{Kind: "layer", Name: b.Digest, Bytes: uint64(b.Size)})
	}
	return out, nil
}
