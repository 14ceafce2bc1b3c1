package dockerfile

import (
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/image/source"
)

// fuzzLimit is how long one input may take: the bounds of the package keep it below a second on a busy machine.
const fuzzLimit = 20 * time.Second

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"FROM x\nRUN a\n", "ARG A=1\nFROM x:$A AS b\nCOPY --from=b --chmod=u+x a /\n", "FROM x\nRUN <<EOF\n#!/x\nEOF\n",
		"FROM x\nENV A=${B:-c} C=${A/b/d}\nEXPOSE 1-9/udp $A\nONBUILD COPY . /\n", "# escape=`\nFROM x\nADD <<a http://h/x /\nb\na\n",
		"FROM a AS b\nONBUILD RUN <<E\nx\nE\nFROM b\nLABEL a=b\nUSER u\nWORKDIR $W\nSTOPSIGNAL RTMIN+1\nSHELL [\"a\"]\nCMD b",
	} {
		f.Add(seed, "ENV A=$B")
	}
	f.Fuzz(func(t *testing.T, text, trigger string) {
		start := time.Now()
		p, err := Parse("Dockerfile", []byte(text), Options{BuildPlatform: host, BuildArgs: map[string]string{"A": "1", "http_proxy": "p"}})
		if err != nil {
			checkFault(t, err)
			return
		}
		image := source.Config{Env: []string{"B=2"}, OnBuild: []string{trigger}}
		for _, s := range p.Needed() {
			r, err := resolveStage(s, image)
			if err != nil {
				checkFault(t, err)
				return
			}
			checkResolved(t, r)
		}
		if took := time.Since(start); took > fuzzLimit {
			t.Errorf("took %s", took)
		}
	})
}

func checkFault(t *testing.T, err error) {
	t.Helper()
	if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "Dockerfile:") || strings.ContainsRune(err.Error(), '\n') {
		t.Errorf("not an error with a line: %q", err)
	}
}

// checkResolved is what package build relies on.
func checkResolved(t *testing.T, r *Resolved) {
	t.Helper()
	for _, s := range r.Steps {
		set := 0
		if s.Run != nil {
			set++
			if len(s.Run.Argv) == 0 {
				t.Error("a command without words")
			}
		}
		if s.Copy != nil {
			set++
			if len(s.Copy.Sources)+len(s.Copy.Contents) == 0 || !strings.HasPrefix(s.Copy.Dest, "/") {
				t.Errorf("copy of %q to %q", s.Copy.Sources, s.Copy.Dest)
			}
		}
		if s.Make {
			set++
		}
		if set != 1 || !strings.HasPrefix(s.Workdir, "/") || s.Line < 1 || strings.ContainsAny(s.Title+s.Text, "\n\x1b") {
			t.Errorf("step %+v", s)
		}
	}
}

func FuzzIgnore(f *testing.F) {
	f.Add("a\n!a/b\n**/*.o", "a/b")
	f.Add("[a-z]*\n\\*", "d/*")
	f.Fuzz(func(t *testing.T, text, name string) {
		start := time.Now()
		ignore, err := ParseIgnore(".dockerignore", []byte(text))
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("class %s: %v", fault.ClassOf(err), err)
			}
			return
		}
		name = strings.TrimPrefix(name, "/")
		if name == "" || strings.Count(name, "/") > 50 || len(name) > 4096 {
			return
		}
		// Every pattern was tried when the file was read: a walk meets no bad one.
		m := ignore.Matcher()
		var at Match
		for i := range name + "/" {
			if i < len(name) && name[i] != '/' {
				continue
			}
			if at, err = m.Match(name[:i], at); err != nil {
				t.Fatalf("%q against %q: %v", name[:i], text, err)
			}
		}
		if took := time.Since(start); took > fuzzLimit {
			t.Errorf("took %s", took)
		}
	})
}
