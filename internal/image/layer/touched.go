package layer

import "strings"

// touched says which paths of a layer those above it may change or remove, before the layer is known. It may say so of
// too many, which then wait in scratch.
//
// Where a layer mentions each directory on the way to an entry, its path is what it says: these are directories then,
// whatever is below. Else a symbolic link of a lower layer may lead anywhere, and only the last part of the path is
// sure: everything that is called so counts as touched.
type touched struct {
	all   bool
	paths reach[uint64] // hashes
	names reach[string] // last parts of paths that are not sure
}

// reach is how far an entry reaches: a directory changes what is there, anything else also removes what is below.
type reach[K comparable] struct {
	exact, below map[K]struct{}
}

func newReach[K comparable]() reach[K] {
	return reach[K]{exact: map[K]struct{}{}, below: map[K]struct{}{}}
}

func (r reach[K]) add(key K, isDir bool) {
	if isDir {
		r.exact[key] = struct{}{}
	} else {
		r.below[key] = struct{}{}
	}
}

// has reports whether something reaches a path of which key is the end, or a part on the way.
func (r reach[K]) has(key K, isEnd bool) bool {
	if len(r.exact)+len(r.below) == 0 {
		return false
	}
	_, ok := r.below[key]
	if !ok && isEnd {
		_, ok = r.exact[key]
	}
	return ok
}

func newTouched() *touched {
	return &touched{paths: newReach[uint64](), names: newReach[string]()}
}

// addAll adds the entries of a layer.
func (t *touched) addAll(records []record) {
	sure := map[uint64]bool{hashOf(""): true} // directories with all their parents mentioned
	for _, r := range records {
		dir, base := splitName(r.path)
		hash, isDir := hashOf(r.path), r.kind == isFile && r.entry.IsDir()
		if r.kind == isOpaque {
			t.all = t.all || r.path == "" || !sure[hash]
			t.paths.add(hash, false)
			continue
		}
		t.paths.add(hash, isDir)
		switch known := sure[hashOf(dir)]; {
		case known && isDir:
			sure[hash] = true
		case known:
		case r.sent: // as if its parents were mentioned
			for dir != "" {
				t.paths.add(hashOf(dir), true)
				dir, _ = splitName(dir)
			}
		default:
			t.names.add(strings.Clone(base), isDir)
		}
	}
}

// has reports whether a path may be changed or removed.
func (t *touched) has(path string) bool {
	if t.all {
		return true
	}
	hash, start := uint64(fnvOffset), 0
	for i := 0; i <= len(path); i++ {
		isEnd := i == len(path)
		if !isEnd && path[i] != '/' {
			hash = (hash ^ uint64(path[i])) * fnvPrime
			continue
		}
		if t.paths.has(hash, isEnd) || t.names.has(path[start:i], isEnd) {
			return true
		}
		if !isEnd {
			hash, start = (hash^'/')*fnvPrime, i+1
		}
	}
	return false
}

// FNV-1a, because it goes on from the hash of a directory to those of what is below it.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func hashOf(path string) uint64 {
	hash := uint64(fnvOffset)
	for i := range len(path) {
		hash = (hash ^ uint64(path[i])) * fnvPrime
	}
	return hash
}
