// Package archtest keeps the architecture: who may import whom and why, one package comment a package, no forbidden
// names, and size budgets. Its rules are data in rules.go; the test reads the source tree and needs no build.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Package is one package of the tree as the rules see it: without its test files.
type Package struct {
	Path     string // import path: "banger/internal/vm"
	Doc      []string
	Imports  map[string]string // import path -> a file that imports it
	Problems []string          // found in its files: functions too long, init functions, ...
}

// Load reads every package below root (the module's root).
func Load(root string) ([]*Package, error) {
	byDir := map[string]*Package{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "proto" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		p := byDir[dir]
		if p == nil {
			p = &Package{Path: filepath.ToSlash(filepath.Join("banger", dir)), Imports: map[string]string{}}
			byDir[dir] = p
		}
		return p.read(path)
	})
	out := make([]*Package, 0, len(byDir))
	for _, p := range byDir {
		if len(p.Imports) > 0 || len(p.Doc) > 0 || len(p.Problems) > 0 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *Package) int { return strings.Compare(a.Path, b.Path) })
	return out, err
}

func (p *Package) read(path string) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, src, parser.ParseComments)
	if err != nil {
		return err
	}
	name := filepath.Base(path)
	test := strings.HasSuffix(path, "_test.go")
	if ast.IsGenerated(file) {
		return nil
	}
	if lines := strings.Count(string(src), "\n"); lines > maxFileLines && !fileAllowed(p.Path+"/"+name, lines) {
		p.problem("%s has %d lines, more than %d: is there one reason to change all of it?", name, lines, maxFileLines)
	}
	if test {
		return nil
	}
	if file.Doc != nil {
		p.Doc = append(p.Doc, name)
	}
	for _, imp := range file.Imports {
		target, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			return err
		}
		p.Imports[target] = name
	}
	for _, decl := range file.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok {
			p.checkFunc(fset, name, fn)
		}
	}
	if !writesTerminal(p.Path) {
		ast.Inspect(file, func(n ast.Node) bool { return p.checkSelector(fset, name, n) })
	}
	return nil
}

func (p *Package) checkFunc(fset *token.FileSet, file string, fn *ast.FuncDecl) {
	if fn.Recv == nil && fn.Name.Name == "init" {
		p.problem("%s: an init function: wiring belongs to the composition root", file)
	}
	lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
	if key := p.Path + "." + fn.Name.Name; lines > maxFuncLines && longFuncs[key] < lines {
		p.problem("%s: func %s has %d lines, more than %d", file, fn.Name.Name, lines, maxFuncLines)
	}
}

// checkSelector finds what only the terminal package and the mains may touch.
func (p *Package) checkSelector(fset *token.FileSet, file string, n ast.Node) bool {
	sel, ok := n.(*ast.SelectorExpr)
	if !ok {
		return true
	}
	pkg, ok := sel.X.(*ast.Ident)
	if !ok {
		return true
	}
	if reason, banned := bannedSelectors[pkg.Name+"."+sel.Sel.Name]; banned {
		p.problem("%s:%d uses %s.%s: %s", file, fset.Position(sel.Pos()).Line, pkg.Name, sel.Sel.Name, reason)
	}
	return true
}

func (p *Package) problem(format string, args ...any) {
	p.Problems = append(p.Problems, fmt.Sprintf(format, args...))
}

// Check returns every breach of the rules in pkgs, and every rule that names a package which is not there.
func Check(pkgs []*Package) []string {
	var out []string
	known := map[string]bool{}
	for _, p := range pkgs {
		known[p.Path] = true
		if len(p.Doc) != 1 {
			out = append(out, fmt.Sprintf("%s: %d files with a package comment, want exactly one: %q", p.Path, len(p.Doc), p.Doc))
		}
		if base := p.Path[strings.LastIndexByte(p.Path, '/')+1:]; slices.Contains(forbiddenNames, base) {
			out = append(out, fmt.Sprintf("%s: %q says nothing: name it by its one job", p.Path, base))
		}
		for _, problem := range p.Problems {
			out = append(out, p.Path+": "+problem)
		}
	}
	for _, ban := range bans {
		if !slices.ContainsFunc(pkgs, func(p *Package) bool { return ban.appliesTo(p.Path) }) {
			out = append(out, fmt.Sprintf("rule for %q fits no package: remove it", ban.from))
		}
		for _, p := range pkgs {
			out = append(out, ban.breaches(p)...)
		}
	}
	for key := range longFuncs {
		if i := strings.LastIndexByte(key, '.'); !known[key[:i]] {
			out = append(out, fmt.Sprintf("allow-list names %q, which is gone: remove it", key))
		}
	}
	return out
}

// ban says that packages matching from must not import packages matching to, except those in except.
type ban struct {
	from, to string // regular expressions over whole import paths
	except   string // importing packages that are let off, likewise; "" for none
	reason   string
}

func (b ban) appliesTo(path string) bool {
	return matches(b.from, path) && (b.except == "" || !matches(b.except, path))
}

func (b ban) breaches(p *Package) (out []string) {
	if !b.appliesTo(p.Path) {
		return nil
	}
	for target, file := range p.Imports {
		if matches(b.to, target) && target != p.Path {
			out = append(out, fmt.Sprintf("%s (%s) imports %s: %s", p.Path, file, target, b.reason))
		}
	}
	return out
}

func matches(expr, path string) bool {
	return regexp.MustCompile("^(?:" + expr + ")$").MatchString(path)
}
