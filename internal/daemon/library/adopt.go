package library

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/store"
)

// claim is what a names file, or a manifest without one, says of a name.
type claim struct {
	name, digest string
	since        time.Time
}

// Adopt brings store and directories in line: after a daemon that was killed, and after the database was lost. A name that
// has no row stands again for the directory that claims it; of several claims the latest counts. Directories that have no
// name then and no VM are removed, and names files are made to say what the store says. What cannot be read is left alone.
func (l *Library) Adopt(ctx context.Context) {
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	digests, claims := l.survey(ctx)
	slices.SortStableFunc(claims, func(a, b claim) int { return b.since.Compare(a.since) })
	for _, c := range claims {
		if err := l.settle(ctx, c); err != nil {
			l.shelf.log.WarnContext(ctx, "cannot adopt", "kind", l.kind, "name", c.name, "error", err)
		}
	}
	for _, digest := range digests {
		l.collectLocked(ctx, digest)
	}
}

// survey returns the digests of the directories that can be used, and what they claim.
func (l *Library) survey(ctx context.Context) (digests []string, claims []claim) {
	for _, dir := range entries(l.root) {
		a, err := l.source.Load(dir)
		if err != nil || l.dir(a.Digest) != dir {
			l.shelf.log.WarnContext(ctx, "not usable", "kind", l.kind, "dir", dir, "error", err)
			continue
		}
		digests = append(digests, a.Digest)
		claims = append(claims, claimsOf(dir, a)...)
	}
	return digests, claims
}

func claimsOf(dir string, a Artifact) (all []claim) {
	n, ok, err := readNames(dir)
	if err != nil || !ok { // of an older banger, or damaged: the name that it was made as
		return []claim{{a.Name, a.Digest, a.Created}}
	}
	for name, since := range n {
		all = append(all, claim{name, a.Digest, since})
	}
	return all
}

// settle makes a row of a claim, unless the name has one.
func (l *Library) settle(ctx context.Context, c claim) error {
	if c.name == "" {
		return nil
	}
	_, err := l.shelf.store.Artifact(ctx, l.kind, c.name)
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	return l.shelf.store.PutArtifact(ctx, store.Artifact{Kind: l.kind, Name: c.name, Digest: c.digest, CreatedAt: c.since},
		store.Happened{Verb: "adopted"})
}

// Stray is a directory that no name stands for and no VM uses, or one that cannot be used.
type Stray struct {
	Dir      string
	Name     string // that it claims
	Problem  string // why it cannot be used; empty: it can
	Replaced bool   // its name stands for another one
	Mend     func(context.Context) error
}

// Strays looks for directories that a row has disappeared for.
func (l *Library) Strays(ctx context.Context) ([]Stray, error) {
	rows, err := l.shelf.store.Artifacts(ctx, l.kind)
	if err != nil {
		return nil, err
	}
	users, err := l.users(ctx)
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, a := range rows {
		named[l.dir(a.Digest)] = true
	}
	var all []Stray
	for _, dir := range entries(l.root) {
		if named[dir] {
			continue
		}
		a, err := l.source.Load(dir)
		if err != nil || l.dir(a.Digest) != dir {
			problem := "it belongs to another digest"
			if err != nil {
				problem = err.Error()
			}
			all = append(all, Stray{Dir: dir, Problem: problem})
			continue
		}
		if len(users[a.Digest]) > 0 {
			continue // an older one that VMs were made with
		}
		s := Stray{Dir: dir, Name: a.Name, Mend: func(ctx context.Context) error { return l.mend(ctx, dir, a) }}
		s.Replaced = !slices.ContainsFunc(claimsOf(dir, a), func(c claim) bool {
			return !slices.ContainsFunc(rows, func(r store.Artifact) bool { return r.Name == c.name })
		})
		all = append(all, s)
	}
	return all, nil
}

// mend adopts one directory, or removes it when its names stand for another one.
func (l *Library) mend(ctx context.Context, dir string, a Artifact) error {
	l.shelf.mu.Lock()
	defer l.shelf.mu.Unlock()
	for _, c := range claimsOf(dir, a) {
		if err := l.settle(ctx, c); err != nil {
			return err
		}
	}
	l.collectLocked(ctx, a.Digest)
	return nil
}

// children are the paths of what is in dir; nothing when that cannot be read.
func children(dir string) []string {
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	all := make([]string, len(found))
	for i, e := range found {
		all[i] = filepath.Join(dir, e.Name())
	}
	return all
}

// entries are children without those that are being removed.
func entries(dir string) []string {
	return slices.DeleteFunc(children(dir), func(path string) bool { return strings.HasPrefix(filepath.Base(path), ".") })
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
