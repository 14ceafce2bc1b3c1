package library

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/store"
	"banger/internal/undo"
)

// Tag gives what ref stands for another name. A name that stands for something else is refused, unless force says that it
// may be taken.
func (l *Library) Tag(ctx context.Context, ref, name string, force bool) (Found, error) {
	name, err := l.CheckName(name)
	if err != nil {
		return Found{}, err
	}
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	found, err := l.Lookup(ctx, ref)
	if err != nil {
		return Found{}, err
	}
	row, err := l.row(ctx, name)
	if err != nil || row.Digest == found.Digest {
		return Found{name, found.Digest}, err
	}
	if row.Digest != "" && !force {
		return Found{}, fault.New(fault.Exists, "%s %s stands for another %s already", l.kind, name, l.kind).
			WithHint("banger %s tag --force %s %s", l.kind, ref, name)
	}
	err = l.publishLocked(context.WithoutCancel(ctx), Publication{
		Name: name, Artifact: Artifact{Digest: found.Digest}, Happened: store.Happened{Verb: "tagged", Message: "also " + found.Ref()},
	})
	return Found{name, found.Digest}, err
}

// Removed is what became of a removal.
type Removed struct {
	Name   string // that is gone; empty: it had none
	Digest string // that is gone with it; empty: it has other names
	Freed  uint64 // bytes on the host
}

// Remove forgets a name, or what is kept without one. With the last name it removes the directory; that is refused, with
// class Conflict, while VMs use it. What a registered image points to stays where it is.
func (l *Library) Remove(ctx context.Context, ref string) (Removed, error) {
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	found, err := l.Lookup(ctx, ref)
	if err != nil {
		return Removed{}, err
	}
	have, err := l.namesOf(ctx, found.Digest)
	if err != nil {
		return Removed{}, err
	}
	if others := have.real(found.Digest); len(others) > 1 && !slices.Contains(l.candidates(ref), found.Name) {
		return Removed{}, fault.New(fault.Conflict, "%s %s has %d names: %s", l.kind, ref, len(others), strings.Join(others, ", ")).
			WithHint("banger %s rm %s", l.kind, strings.Join(others, " "))
	}
	ctx = context.WithoutCancel(ctx) // all or nothing
	if err := l.forget(ctx, found, have); err != nil {
		return Removed{}, err
	}
	out := Removed{Name: found.Name}
	if len(have) <= 1 {
		out.Digest = found.Digest
		out.Freed = reclaimable([]string{l.dir(found.Digest)})[l.dir(found.Digest)]
		l.collectLocked(ctx, found.Digest)
		l.passed(ctx, StepForgetGone)
	}
	return out, nil
}

// forget forgets one name of a digest, first in the names file, then in the store. have are its names. The caller holds
// the shelf's lock.
func (l *Library) forget(ctx context.Context, found Found, have names) (err error) {
	name := found.Ref()
	var u undo.Stack
	defer func() {
		if undoErr := u.Run(ctx); undoErr != nil {
			l.shelf.log.ErrorContext(ctx, "a removal that failed left something behind", "kind", l.kind, "name", name, "error", undoErr)
		}
	}()
	if dir := l.dir(found.Digest); exists(dir) {
		u.Add("write the names as they were", func(context.Context) error { return writeNames(dir, have) })
		if err := writeNames(dir, have.without(name)); err != nil {
			return err
		}
	}
	if err := l.shelf.at(ctx, StepForgetNames); err != nil {
		return err
	}
	users, err := l.shelf.store.ForgetArtifact(ctx, l.kind, name)
	if err == nil && len(have) == 0 { // only VMs kept it
		all, usersErr := l.users(ctx)
		users, err = all[found.Digest], usersErr
	}
	if err == nil && len(users) > 0 {
		err = l.inUse(found, users)
	}
	if err != nil {
		return err
	}
	u.Disarm()
	l.passed(ctx, StepForgetRow)
	return nil
}

// inUse says who uses what somebody wants to remove.
func (l *Library) inUse(found Found, users []store.VM) error {
	names := visible(users)
	if len(names) == 0 {
		return fault.New(fault.Conflict, "%s %s is used by a build or an export that is under way", l.kind, found.Ref()).
			WithHint("banger op list")
	}
	what := "vm " + names[0]
	if len(names) > 1 {
		what = fmt.Sprintf("%d vms: %s", len(names), strings.Join(names, ", "))
	}
	return fault.New(fault.Conflict, "%s %s is used by %s", l.kind, found.Ref(), what).WithHint("banger vm rm %s", strings.Join(names, " "))
}

// visible are the names of the VMs that are not the daemon's own.
func visible(vms []store.VM) []string {
	var names []string
	for _, v := range vms {
		if !v.Hidden() {
			names = append(names, string(v.Name()))
		}
	}
	return names
}

// Collect removes the directory of a digest that no name stands for and no VM uses. A failure is logged: it costs space,
// nothing else. The empty digest is of nothing.
func (l *Library) Collect(ctx context.Context, digest string) {
	if digest == "" {
		return
	}
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	l.collectLocked(ctx, digest)
}

func (l *Library) collectLocked(ctx context.Context, digest string) {
	busy, err := l.shelf.store.DigestUsed(ctx, l.kind, digest)
	switch {
	case err == nil && busy:
		l.syncNames(ctx, digest)
	case err == nil:
		err = atomicfile.RemoveDir(l.dir(digest))
	}
	if err != nil {
		l.shelf.log.WarnContext(ctx, "cannot remove what nobody uses", "kind", l.kind, "digest", digest, "error", err)
	}
}
