package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/operation"
	"banger/internal/paths"
	"banger/internal/progress"
	"banger/internal/store"
)

// shelf is what both libraries share: where finished artifacts stand.
type shelf struct {
	paths     paths.Paths
	store     *store.Store
	log       *slog.Logger
	publishMu sync.Mutex // held while a directory moves to its place, or goes, together with its row
}

// library holds the images or the kernels of this host: a directory for each, named by its digest, and a row for each
// name. Pulls of one name are one job, whoever wants it.
type library struct {
	kind   store.Kind
	source Source
	shelf  *shelf
	ops    *operation.Registry[string]
	dir    func(digest string) string
	root   string // the parent of every dir
}

// local returns the artifact that the name stands for, if it is here and whole. One that this banger cannot use
// (another layout) counts as missing.
func (l *library) local(ctx context.Context, name string) (Artifact, bool, error) {
	row, err := l.shelf.store.Artifact(ctx, l.kind, name)
	if fault.Is(err, fault.NotFound) {
		return Artifact{}, false, nil
	}
	if err != nil {
		return Artifact{}, false, err
	}
	a, err := l.source.Load(l.dir(row.Digest))
	if err != nil {
		l.shelf.log.WarnContext(ctx, "unusable", "kind", l.kind, "name", name, "error", err)
		return Artifact{}, false, nil
	}
	return a, true, nil
}

// check returns a fault when the name is neither here nor in the catalog.
func (l *library) check(ctx context.Context, name string) error {
	_, here, err := l.local(ctx, name)
	if err != nil || here {
		return err
	}
	_, err = l.source.Find(name)
	return err
}

// ensure returns the artifact of that name and pulls it if it is missing. It shares a pull that is under way.
func (l *library) ensure(ctx context.Context, name string, report progress.Func) (Artifact, error) {
	a, here, err := l.local(ctx, name)
	if err != nil || here {
		return a, err
	}
	spec, job, err := l.job(name, false)
	if err != nil {
		return Artifact{}, err
	}
	if _, err := l.ops.Share(ctx, spec, report, job); err != nil {
		return Artifact{}, err
	}
	a, here, err = l.local(ctx, name)
	if err == nil && !here {
		err = fault.New(fault.Unavailable, "%s %s is not usable although it was pulled just now", l.kind, name)
	}
	return a, err
}

// begin begins the operation of a pull.
func (l *library) begin(name string, force bool) (id string, err error) {
	spec, job, err := l.job(name, force)
	if err != nil {
		return "", err
	}
	return l.ops.Begin(spec, job)
}

func (l *library) job(name string, force bool) (operation.Spec, operation.Job[string], error) {
	item, err := l.source.Find(name)
	if err != nil {
		return operation.Spec{}, nil, err
	}
	spec := operation.Spec{Kind: string(l.kind) + ".pull", Target: item.Name, Key: string(l.kind) + "/" + item.Name}
	if force {
		spec.Key += "/anew"
	}
	return spec, func(ctx context.Context, report progress.Func) (string, error) {
		return item.Name, l.pull(ctx, item.Name, force, report)
	}, nil
}

// pull makes the artifact and publishes it. Without force nothing is fetched when it is here.
func (l *library) pull(ctx context.Context, name string, force bool, report progress.Func) error {
	if _, here, err := l.local(ctx, name); err != nil || here && !force {
		return err
	}
	staged, a, err := l.source.Pull(ctx, name, l.shelf.paths.Staging(), report)
	if err != nil {
		return err
	}
	err = l.publish(ctx, name, staged, a)
	if err == nil { // that the stage is over is what nothing else says
		report(progress.Update{Stage: string(l.kind), Message: name + " is ready", Done: 1, Total: 1})
	}
	return errors.Join(err, l.discard(ctx, staged)) // gone already when it was published
}

// publish puts a staged directory in its place and makes the name stand for it. What the name stood for before goes
// when no VM uses it.
func (l *library) publish(ctx context.Context, name, staged string, a Artifact) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	l.shelf.publishMu.Lock()
	defer l.shelf.publishMu.Unlock()
	ctx = context.WithoutCancel(ctx) // from here on it is milliseconds, and all or nothing
	before, err := l.shelf.store.Artifact(ctx, l.kind, name)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	place := l.dir(a.Digest)
	made := false
	if _, err := l.source.Load(place); err != nil { // the same content may be here: then that one stays, VMs have it open
		if err := atomicfile.RemoveDir(place); err != nil {
			return fault.Wrap(fault.Internal, err, "remove what is left of %s %s", l.kind, name)
		}
		if err := os.Rename(staged, place); err != nil {
			return fault.Wrap(fault.Internal, err, "publish %s %s", l.kind, name)
		}
		made = true
		if err := atomicfile.SyncDir(l.root); err != nil {
			return errors.Join(err, atomicfile.RemoveDir(place))
		}
	}
	row := store.Artifact{Kind: l.kind, Name: name, Digest: a.Digest, CreatedAt: a.Created}
	if err := l.shelf.store.PutArtifact(ctx, row); err != nil {
		if made {
			err = errors.Join(err, atomicfile.RemoveDir(place))
		}
		return err
	}
	if before.Digest != "" && before.Digest != a.Digest {
		l.collectLocked(ctx, before.Digest)
	}
	return nil
}

// discard removes a staged directory, also when ctx has ended.
func (l *library) discard(ctx context.Context, dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	return l.source.Discard(ctx, dir)
}

// collect removes the directory of a digest that no name stands for and no VM uses. A failure is logged: it costs
// space, nothing else.
func (l *library) collect(ctx context.Context, digest string) {
	l.shelf.publishMu.Lock()
	defer l.shelf.publishMu.Unlock()
	l.collectLocked(ctx, digest)
}

func (l *library) collectLocked(ctx context.Context, digest string) {
	busy, err := l.shelf.store.DigestUsed(ctx, l.kind, digest)
	if err == nil && !busy {
		err = atomicfile.RemoveDir(l.dir(digest))
	}
	if err != nil {
		l.shelf.log.WarnContext(ctx, "cannot remove what nobody uses", "kind", l.kind, "digest", digest, "error", err)
	}
}

// adoptOrphans gives directories that have no row (the database was lost, or a daemon was killed between the two steps
// of publish) their name back, or removes them when the name has another one and no VM uses them.
func (l *library) adoptOrphans(ctx context.Context) {
	var all []Artifact
	for _, dir := range list(l.root) {
		if strings.HasPrefix(filepath.Base(dir), ".") {
			continue
		}
		a, err := l.source.Load(dir)
		if err != nil || l.dir(a.Digest) != dir {
			l.shelf.log.WarnContext(ctx, "not usable", "kind", l.kind, "dir", dir, "error", err)
			continue
		}
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b Artifact) int { return b.Created.Compare(a.Created) }) // the newest gets the name
	for _, a := range all {
		if err := l.adopt(ctx, a); err != nil {
			l.shelf.log.WarnContext(ctx, "cannot adopt", "kind", l.kind, "name", a.Name, "error", err)
		}
	}
}

// adopt gives one directory its name back, or removes it when the name has another one and no VM uses it.
func (l *library) adopt(ctx context.Context, a Artifact) error {
	_, err := l.shelf.store.Artifact(ctx, l.kind, a.Name)
	switch {
	case err == nil:
		l.collect(ctx, a.Digest)
	case fault.Is(err, fault.NotFound):
		return l.shelf.store.PutArtifact(ctx, store.Artifact{Kind: l.kind, Name: a.Name, Digest: a.Digest, CreatedAt: a.Created})
	}
	return nil
}

// present is the set of names that are here.
func (l *library) present(ctx context.Context) (map[string]bool, error) {
	rows, err := l.shelf.store.Artifacts(ctx, l.kind)
	if err != nil {
		return nil, err
	}
	set := make(map[string]bool, len(rows))
	for _, r := range rows {
		set[r.Name] = true
	}
	return set, nil
}

// each calls visit for every artifact with the real size of its directory. One that cannot be read has its name and
// digest only.
func (l *library) each(ctx context.Context, visit func(a Artifact, used uint64)) error {
	rows, err := l.shelf.store.Artifacts(ctx, l.kind)
	if err != nil {
		return err
	}
	for _, r := range rows {
		dir := l.dir(r.Digest)
		a, err := l.source.Load(dir)
		if err != nil {
			a = Artifact{Source: "not usable: " + err.Error()}
		}
		a.Name, a.Digest, a.Created = r.Name, r.Digest, r.CreatedAt
		visit(a, used(dir))
	}
	return nil
}
