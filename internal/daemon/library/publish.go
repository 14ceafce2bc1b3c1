package library

import (
	"context"
	"errors"
	"os"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/store"
	"banger/internal/undo"
)

// Publication is something that is complete and is to be found under a name from now on.
type Publication struct {
	Name     string // empty: it is kept without one
	Staged   string // its directory in staging; empty: it has its place already
	Artifact Artifact
	// Before is what the name must still stand for (Library.Claim); nil: whatever it stands for goes.
	Before   *Claim
	Happened store.Happened // for the event
}

// Claim is what a name stood for when somebody began to make something that is to have it.
type Claim struct{ digest string } // empty: nothing

// Claim notes what a name stands for now. Of those that claim a name at the same time one wins: the others find at
// publication that it stands for something else.
func (l *Library) Claim(ctx context.Context, name string) (*Claim, error) {
	row, err := l.row(ctx, name)
	return &Claim{row.Digest}, err
}

// ClaimNew is Claim for a name that must be new, unless force says that it may be taken from something else: then there
// is nothing to claim.
func (l *Library) ClaimNew(ctx context.Context, name string, force bool) (*Claim, error) {
	if force {
		return nil, nil
	}
	c, err := l.Claim(ctx, name)
	if err == nil && c.digest != "" {
		return nil, l.taken(name)
	}
	return c, err
}

func (l *Library) taken(name string) error {
	return fault.New(fault.Exists, "%s %s exists already", l.kind, name).WithHint("banger %s rm %s", l.kind, name)
}

// row is the row of a name, or none.
func (l *Library) row(ctx context.Context, name string) (store.Artifact, error) {
	if name == "" {
		return store.Artifact{}, nil
	}
	row, err := l.shelf.store.Artifact(ctx, l.kind, name)
	if fault.Is(err, fault.NotFound) {
		return store.Artifact{}, nil
	}
	return row, err
}

// Publish puts a staged directory in its place and makes the name stand for it. What the name stood for before goes when
// nothing else needs it. It is all or nothing; a staged directory that was not used stays for the caller to Discard.
func (l *Library) Publish(ctx context.Context, p Publication) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	ctx = context.WithoutCancel(ctx) // from here on it is milliseconds, and all or nothing
	return l.publishLocked(ctx, p)
}

func (l *Library) publishLocked(ctx context.Context, p Publication) error {
	if err := l.shelf.at(ctx, StepStaged); err != nil {
		return err
	}
	before, err := l.row(ctx, p.Name)
	if err != nil {
		return err
	}
	digest := p.Artifact.Digest
	if p.Before != nil && before.Digest != p.Before.digest && before.Digest != digest {
		return fault.New(fault.Exists, "%s %s was given to another one meanwhile", l.kind, p.Name).WithHint("banger %s list", l.kind)
	}
	if p.Name == "" {
		p.Name = digest
	}
	row := store.Artifact{Kind: l.kind, Name: p.Name, Digest: digest, CreatedAt: time.Now().UTC().Truncate(time.Millisecond)}
	var u undo.Stack
	defer func() {
		if err := u.Run(ctx); err != nil {
			l.shelf.log.ErrorContext(ctx, "a publication that failed left something behind", "kind", l.kind, "name", p.Name, "error", err)
		}
	}()
	if err := l.place(ctx, p, row, &u); err != nil {
		return err
	}
	if err := l.shelf.at(ctx, StepNamed); err != nil {
		return err
	}
	if err := l.shelf.store.PutArtifact(ctx, row, p.Happened); err != nil {
		return err
	}
	u.Disarm()
	l.passed(ctx, StepRow)
	if before.Digest != "" && before.Digest != digest {
		l.collectLocked(ctx, before.Digest)
	}
	return nil
}

// passed is a step at which nothing can fail any more.
func (l *Library) passed(ctx context.Context, step Step) {
	if err := l.shelf.at(ctx, step); err != nil {
		l.shelf.log.WarnContext(ctx, "cut off after it was done", "step", step, "error", err)
	}
}

// place sees to it that the directory is at its place and its names file has the new name.
func (l *Library) place(ctx context.Context, p Publication, row store.Artifact, u *undo.Stack) error {
	place := l.dir(row.Digest)
	have, err := l.namesOf(ctx, row.Digest)
	if err != nil {
		return err
	}
	// The same content may be here: then that one stays, VMs have it open.
	if _, err := l.source.Load(place); err == nil {
		u.Add("write the names as they were", func(context.Context) error { return writeNames(place, have) })
		return writeNames(place, have.with(row))
	}
	if p.Staged == "" {
		return fault.New(fault.Unavailable, "%s %s is gone", l.kind, row.Digest).WithHint("banger %s list", l.kind)
	}
	if err := writeNames(p.Staged, have.with(row)); err != nil {
		return err
	}
	if err := atomicfile.RemoveDir(place); err != nil {
		return fault.Wrap(fault.Internal, err, "remove what is left of %s %s", l.kind, p.Name)
	}
	if err := os.Rename(p.Staged, place); err != nil {
		return fault.Wrap(fault.Internal, err, "publish %s %s", l.kind, p.Name)
	}
	u.Add("remove the directory", func(context.Context) error { return atomicfile.RemoveDir(place) })
	if err := atomicfile.SyncDir(l.root); err != nil {
		return fault.Wrap(fault.Internal, err, "publish %s %s", l.kind, p.Name)
	}
	return l.shelf.at(ctx, StepMoved)
}

// bring publishes a kernel that came with an image: under its own name if that is free, else without one. undo takes it
// back unless it was there before or a VM has begun to use it.
func (l *Library) bring(ctx context.Context, staged string, a Artifact) (undo func(), err error) {
	nothing := func() {}
	have, err := l.namesOf(ctx, a.Digest)
	if err != nil {
		return nothing, err
	}
	row, err := l.row(ctx, a.Name)
	if err != nil {
		return nothing, err
	}
	name := a.Name
	if row.Digest != "" && row.Digest != a.Digest {
		name = ""
	}
	err = l.Publish(ctx, Publication{Name: name, Staged: staged, Artifact: a, Happened: store.Happened{Verb: "added", Message: "with an image"}})
	if err != nil || len(have) > 0 {
		return nothing, err
	}
	return func() {
		ctx := context.WithoutCancel(ctx)
		if _, err := l.Remove(ctx, a.Digest); err != nil && !fault.Is(err, fault.NotFound) {
			l.shelf.log.WarnContext(ctx, "what came with an image stays", "kind", l.kind, "digest", a.Digest, "error", err)
		}
	}, nil
}

// Discard removes a staged directory, also when ctx has ended. One that is not there is no error.
func (l *Library) Discard(ctx context.Context, dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undo.Timeout)
	defer cancel()
	return l.source.Discard(ctx, dir)
}

// Take publishes what a Source has staged and leaves nothing of it in staging, whatever comes of it.
func (l *Library) Take(ctx context.Context, p Publication) (err error) {
	if p.Staged == "" {
		return l.Publish(ctx, p)
	}
	defer func() { err = errors.Join(err, l.Discard(ctx, p.Staged)) }() // gone already when it was published
	if l.brought == nil {
		return l.Publish(ctx, p)
	}
	takeBack, err := l.brought(ctx, p.Staged)
	if err == nil {
		err = l.Publish(ctx, p)
	}
	if err != nil {
		takeBack()
	}
	return err
}
