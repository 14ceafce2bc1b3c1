// Package library keeps the images, or the kernels, of this host: a directory for each, named by its digest, and a row in
// the store for each name. It gets what is missing from a Source, and everything that makes, names or removes one goes
// through here.
//
// What is slow (downloading, converting) is done in the staging directory, outside of any lock. The publication window is
// what the shelf's lock covers: look again at the name, rename the directory to its place, write its names file, insert
// the row. The row is the point of no return; whoever dies before it leaves what the next daemon's Adopt completes or
// removes, whoever dies after it leaves a names file that Adopt brings in line.
//
// The names file (names.json beside the manifest) says which names stand for the directory and since when. The store is
// the authority; the files are there for the day on which the database is lost.
package library

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"banger/internal/fault"
	"banger/internal/nearest"
	"banger/internal/operation"
	"banger/internal/paths"
	"banger/internal/store"
)

// Step names a point between two things that a path does to disk, database or processes, for tests.
type Step string

// The steps of a library.
const (
	StepStaged      Step = "publish.staged" // it is complete in staging; the window has begun
	StepMoved       Step = "publish.moved"  // its directory is at its place, with its names file
	StepNamed       Step = "publish.names"  // its names file is right, wherever its directory came from
	StepRow         Step = "publish.row"    // the name stands for it: nothing is taken back any more
	StepForgetNames Step = "forget.names"   // the names file has lost the name
	StepForgetRow   Step = "forget.row"     // the name is forgotten: nothing is taken back any more
	StepForgetGone  Step = "forget.gone"    // and the directory is gone, if it was the last one
)

// Shelf is what the libraries of a host share: where finished things stand. Make one with NewShelf.
type Shelf struct {
	// Fixed.
	paths paths.Paths
	store *store.Store
	log   *slog.Logger
	step  func(context.Context, Step) error // nil: none

	mu    sync.Mutex   // held while a directory moves to its place, or goes, together with its row
	blobs sync.RWMutex // read: an operation counts on blobs, however long; written, never waited for: unneeded ones are being removed
}

// NewShelf returns the shelf for these directories. step is called at each step; it may be nil.
func NewShelf(p paths.Paths, db *store.Store, log *slog.Logger, step func(context.Context, Step) error) *Shelf {
	return &Shelf{paths: p, store: db, log: log, step: step}
}

// UseBlobs keeps every blob where it is until release is called: what an operation has found in the blob store, or puts
// there, belongs to nobody until its image is published.
func (s *Shelf) UseBlobs() (release func()) {
	s.blobs.RLock()
	return sync.OnceFunc(s.blobs.RUnlock)
}

func (s *Shelf) at(ctx context.Context, step Step) error {
	if s.step == nil {
		return nil
	}
	return s.step(ctx, step)
}

// Library holds the images or the kernels of this host. Its fields are fixed.
type Library struct {
	kind   store.Kind
	source Source
	shelf  *Shelf
	ops    *operation.Registry[string]
	dir    func(digest string) string
	root   string // the parent of every dir
	// brought takes what came with a staged directory and belongs elsewhere (the kernel of a bundle); nil: nothing does.
	// undo, which is never nil, takes that back.
	brought func(ctx context.Context, staged string) (undo func(), err error)
}

// Images returns the library of images. What comes with one and is a kernel goes to kernels.
func Images(s *Shelf, source Source, ops *operation.Registry[string], kernels *Library) *Library {
	l := &Library{kind: store.Image, source: source, shelf: s, ops: ops, dir: s.paths.Image, root: s.paths.Images()}
	if source.Brought != nil {
		l.brought = func(ctx context.Context, staged string) (func(), error) {
			dir, a, ok, err := source.Brought(staged)
			if err != nil || !ok {
				return func() {}, err
			}
			return kernels.bring(ctx, dir, a)
		}
	}
	return l
}

// Kernels returns the library of kernels.
func Kernels(s *Shelf, source Source, ops *operation.Registry[string]) *Library {
	return &Library{kind: store.Kernel, source: source, shelf: s, ops: ops, dir: s.paths.Kernel, root: s.paths.Kernels()}
}

// Dir is the directory of the digest, whether or not it is there.
func (l *Library) Dir(digest string) string { return l.dir(digest) }

// Root is the parent of every Dir.
func (l *Library) Root() string { return l.root }

// Kind is what it holds.
func (l *Library) Kind() store.Kind { return l.kind }

// Source is where what is missing comes from.
func (l *Library) Source() Source { return l.source }

// Found is what a reference stands for on this host.
type Found struct {
	Name   string // empty: it has none
	Digest string
}

// Ref is how the thing is best called: by its name, else by its digest.
func (f Found) Ref() string {
	if f.Name == "" {
		return f.Digest
	}
	return f.Name
}

// minDigits is how many digits of a digest somebody has to give at least.
const minDigits = 4

// Lookup returns what a reference stands for here: exactly that name, the name with ":latest", the name in the form that
// the source gives it, or the digest, of which the first digits are enough if they fit one only. Nothing is a fault of
// class NotFound.
func (l *Library) Lookup(ctx context.Context, ref string) (Found, error) {
	rows, err := l.shelf.store.Artifacts(ctx, l.kind)
	if err != nil {
		return Found{}, err
	}
	for _, name := range l.candidates(ref) {
		i := slices.IndexFunc(rows, func(a store.Artifact) bool { return a.Name == name && !a.Unnamed() })
		if i >= 0 {
			return Found{rows[i].Name, rows[i].Digest}, nil
		}
	}
	digits, ok := digestPrefix(ref)
	if !ok {
		return Found{}, l.notHere(ref, rows)
	}
	return l.byDigest(ctx, ref, digits, rows)
}

// candidates are the names that a reference may have here, the likeliest first.
func (l *Library) candidates(ref string) []string {
	names := []string{ref}
	if l.kind == store.Image {
		names = append(names, ref+":latest")
	}
	if l.source.Names != nil {
		names = append(names, l.source.Names(ref)...)
	}
	return names
}

// digestPrefix returns the digits of a digest, or of the beginning of one.
func digestPrefix(ref string) (digits string, ok bool) {
	digits = strings.TrimPrefix(ref, "sha256:")
	notHex := func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') }
	return digits, len(digits) >= minDigits && len(digits) <= 64 && strings.IndexFunc(digits, notHex) < 0
}

// byDigest looks among what has a name, is kept without one, or is used by a VM.
func (l *Library) byDigest(ctx context.Context, ref, digits string, rows []store.Artifact) (Found, error) {
	found := map[string]string{} // digest to name
	for _, a := range rows {
		if strings.HasPrefix(a.Digest, "sha256:"+digits) && (found[a.Digest] == "" || a.Name == ref) {
			found[a.Digest] = ""
			if !a.Unnamed() {
				found[a.Digest] = a.Name
			}
		}
	}
	users, err := l.users(ctx)
	if err != nil {
		return Found{}, err
	}
	for digest := range users {
		if _, named := found[digest]; !named && strings.HasPrefix(digest, "sha256:"+digits) {
			found[digest] = ""
		}
	}
	switch len(found) {
	case 0:
		return Found{}, l.notHere(ref, rows)
	case 1:
		for digest, name := range found {
			return Found{name, digest}, nil
		}
	}
	return Found{}, fault.New(fault.Invalid, "%q fits more than one %s: give more digits", ref, l.kind).WithHint("banger %s list", l.kind)
}

// notHere names what is here and may be meant: that of a registry, or what is called nearly so.
func (l *Library) notHere(ref string, rows []store.Artifact) error {
	f := fault.New(fault.NotFound, "%s %s is not here", l.kind, ref).WithHint("banger %s list", l.kind)
	var names []string
	near := ""
	for _, a := range rows {
		if a.Unnamed() {
			continue
		}
		names = append(names, a.Name)
		if strings.HasSuffix(a.Name, "/"+ref) || strings.HasSuffix(a.Name, "/"+ref+":latest") {
			near = a.Name
		}
	}
	if near == "" {
		near = nearest.Of(ref, names)
	}
	if near != "" {
		f.Message += ", did you mean " + near + "?"
	}
	return f
}

// users are the VMs that use each digest.
func (l *Library) users(ctx context.Context) (map[string][]store.VM, error) {
	vms, err := l.shelf.store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	users := map[string][]store.VM{}
	for _, v := range vms {
		digest := v.ImageDigest
		if l.kind == store.Kernel {
			digest = v.KernelDigest
		}
		if digest != "" {
			users[digest] = append(users[digest], v)
		}
	}
	return users, nil
}

// Get returns what a reference stands for, as its directory says. What cannot be used (a layout of another banger, files
// that are gone) has a Problem.
func (l *Library) Get(ctx context.Context, ref string) (Artifact, error) {
	found, err := l.Lookup(ctx, ref)
	if err != nil {
		return Artifact{}, err
	}
	return l.load(found), nil
}

// load reads the directory of what was found.
func (l *Library) load(f Found) Artifact {
	a, err := l.source.Load(l.dir(f.Digest))
	if err != nil {
		a = Artifact{Problem: err.Error(), Lost: true}
	}
	a.Name, a.Digest, a.Dir = f.Name, f.Digest, l.dir(f.Digest)
	return a
}

// local returns what the reference stands for, if it is here and can be used, or could if its owner mended it. What only
// pulling again can mend counts as missing.
func (l *Library) local(ctx context.Context, ref string) (Artifact, bool, error) {
	a, err := l.Get(ctx, ref)
	switch {
	case fault.Is(err, fault.NotFound):
		return Artifact{}, false, nil
	case err != nil:
		return Artifact{}, false, err
	case a.Lost:
		l.shelf.log.WarnContext(ctx, "unusable", "kind", l.kind, "name", a.Ref(), "problem", a.Problem)
		return Artifact{}, false, nil
	}
	return a, true, nil
}

// Check returns a fault when the reference is neither here nor anything that can be pulled.
func (l *Library) Check(ctx context.Context, ref string) error {
	_, here, err := l.local(ctx, ref)
	if err != nil || here {
		return err
	}
	_, err = l.source.Find(ctx, ref)
	return err
}

// Local returns what the reference stands for, if it is here.
func (l *Library) Local(ctx context.Context, ref string) (Artifact, bool, error) {
	return l.local(ctx, ref)
}
