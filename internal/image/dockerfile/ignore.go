package dockerfile

import (
	"bytes"
	"path"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"banger/internal/fault"
)

// Bounds of a .dockerignore file.
const (
	maxIgnoreFile     = 1 << 20
	maxIgnorePatterns = 10000
)

// Ignore is what a .dockerignore file says. The zero value and nil ignore nothing.
type Ignore struct {
	Name     string // of the file, for messages
	patterns []string
}

// ParseIgnore reads the .dockerignore file called name.
func ParseIgnore(name string, data []byte) (*Ignore, error) {
	if len(data) > maxIgnoreFile {
		return nil, fault.New(fault.Invalid, "%s has %d bytes, more than %d", name, len(data), maxIgnoreFile)
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(data))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "%s", name)
	}
	if len(patterns) > maxIgnorePatterns {
		return nil, fault.New(fault.Invalid, "%s has %d patterns, more than %d", name, len(patterns), maxIgnorePatterns)
	}
	for _, p := range patterns {
		if err := try(p); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "%s: pattern %q", name, oneLine(p, 60))
		}
	}
	return &Ignore{Name: name, patterns: patterns}, nil
}

// try matches a pattern with something, which is what finds out that it is wrong. An exception is tried only when a
// pattern before it has matched.
func try(pattern string) error {
	for _, list := range [][]string{{pattern}, {"**", pattern}} {
		m, err := patternmatcher.New(list)
		if err != nil {
			return err
		}
		if _, err := m.MatchesOrParentMatches("x"); err != nil {
			return err
		}
	}
	return nil
}

// Len is the number of patterns.
func (i *Ignore) Len() int {
	if i == nil {
		return 0
	}
	return len(i.patterns)
}

// Matcher returns a matcher of its own for one walk: it is not safe for several goroutines.
func (i *Ignore) Matcher() *Matcher { return newMatcher(i.patternList()) }

func (i *Ignore) patternList() []string {
	if i == nil {
		return nil
	}
	return i.patterns
}

// Matcher matches paths against patterns of .dockerignore's kind. A walk asks for each directory before what is in it.
type Matcher struct {
	m *patternmatcher.PatternMatcher // nil: nothing matches
}

// Match is what a Matcher says of one path. The zero value is that of the root.
type Match struct {
	Matched bool
	info    patternmatcher.MatchInfo
}

// NewMatcher returns a matcher of the patterns of --exclude.
func NewMatcher(patterns []string) *Matcher { return newMatcher(patterns) }

func newMatcher(patterns []string) *Matcher {
	if len(patterns) == 0 {
		return &Matcher{}
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return &Matcher{} // the patterns were tried before
	}
	return &Matcher{m}
}

// Match tells whether name, a clean relative path, matches; parent is the answer for the directory that it is in.
func (m *Matcher) Match(name string, parent Match) (Match, error) {
	if m.m == nil {
		return Match{}, nil
	}
	matched, info, err := m.m.MatchesUsingParentResults(name, parent.info)
	return Match{matched, info}, err
}

// MatchPath is Match for a path whose directories were not asked for.
func (m *Matcher) MatchPath(name string) (bool, error) {
	if m.m == nil {
		return false, nil
	}
	return m.m.MatchesOrParentMatches(path.Clean(name))
}

// Prunes reports whether nothing below a directory that matches can fail to match.
func (m *Matcher) Prunes() bool { return m.m == nil || !m.m.Exclusions() }
