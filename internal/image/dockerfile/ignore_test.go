package dockerfile

import (
	"path"
	"testing"
)

// match walks down to name as a walk over the context does.
func match(t testing.TB, m *Matcher, name string) bool {
	t.Helper()
	var at Match
	if dir := path.Dir(name); dir != "." {
		at = matchInfo(t, m, dir)
	}
	got, err := m.Match(name, at)
	if err != nil {
		t.Fatal(err)
	}
	return got.Matched
}

func matchInfo(t testing.TB, m *Matcher, name string) Match {
	t.Helper()
	var at Match
	if dir := path.Dir(name); dir != "." {
		at = matchInfo(t, m, dir)
	}
	got, err := m.Match(name, at)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestIgnore(t *testing.T) {
	for _, tc := range []struct {
		text          string
		ignored, kept []string
	}{
		{"", nil, []string{"a", "a/b"}},
		{"# comment\n\n  a  \n", []string{"a", "a/b"}, []string{"b", "b/a", "# comment"}},
		{"\ufeffa", []string{"a"}, nil},
		{"/a/b", []string{"a/b", "a/b/c"}, []string{"a", "b"}},
		{"./a/../b", []string{"b"}, []string{"a"}},
		{"a/", []string{"a", "a/b"}, []string{"b"}},
		{"*.o", []string{"x.o"}, []string{"d/x.o", "x.c"}},
		{"**/*.o", []string{"x.o", "d/x.o", "d/e/x.o"}, []string{"x.c"}},
		{"*/tmp*", []string{"a/tmp", "b/tmpx"}, []string{"tmp", "a/b/tmp"}},
		{"temp?", []string{"tempa"}, []string{"temp", "tempab"}},
		{"[ab].c", []string{"a.c", "b.c"}, []string{"c.c"}},
		{"*.md\n!README.md", []string{"a.md"}, []string{"README.md"}},
		{"*.md\n!README*.md\nREADME-secret.md", []string{"README-secret.md", "x.md"}, []string{"README.md"}},
		{"dir\n!dir/keep", []string{"dir", "dir/a"}, []string{"dir/keep", "dir/keep/x"}},
		{"*\n!src\n!go.mod", []string{"a", "vendor/x"}, []string{"src", "src/a/b", "go.mod"}},
		{"**", []string{"a", "a/b"}, nil},
		{"a\\*b", []string{"a*b"}, []string{"axb"}},
		{"a b", []string{"a b"}, []string{"a"}},
		{"a.b", []string{"a.b"}, []string{"axb"}},
	} {
		ignore, err := ParseIgnore(".dockerignore", []byte(tc.text))
		if err != nil {
			t.Errorf("%q: %v", tc.text, err)
			continue
		}
		m := ignore.Matcher()
		for _, name := range tc.ignored {
			if !match(t, m, name) {
				t.Errorf("%q does not ignore %s", tc.text, name)
			}
		}
		for _, name := range tc.kept {
			if match(t, m, name) {
				t.Errorf("%q ignores %s", tc.text, name)
			}
		}
	}
	for text, want := range map[string]string{
		"a[": `.dockerignore: pattern "a[": syntax error in pattern`,
		"!":  `.dockerignore: pattern "!": illegal exclusion pattern: "!"`,
	} {
		if _, err := ParseIgnore(".dockerignore", []byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	var none *Ignore
	if none.Len() != 0 || match(t, none.Matcher(), "a") || !none.Matcher().Prunes() {
		t.Error("no .dockerignore ignores something")
	}
}
