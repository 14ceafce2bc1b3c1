package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"banger/internal/atomicfile"
	"banger/internal/fault"
)

// Setting is one key with the value that is in force.
type Setting struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Default string `json:"default"`
	Line    int    `json:"line,omitempty"` // of the file that sets it; 0: it has its default
	Comment string `json:"comment"`
}

// Show returns every setting in the order of the documentation. A broken file is the fault that Load gives.
func Show(path string) ([]Setting, error) {
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	c, err := parse(path, text)
	if err != nil {
		return nil, err
	}
	var ignored map[string]any
	meta, err := toml.Decode(text, &ignored)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "%s", path)
	}
	standard := Default()
	var all []Setting
	for _, k := range keys() {
		s := Setting{Key: k.name, Value: k.value(&c), Default: k.value(&standard), Comment: k.comment}
		if parts := strings.Split(k.name, "."); meta.IsDefined(parts...) {
			s.Line = lineOf(text, parts)
		}
		all = append(all, s)
	}
	return append(all, showCatalogs(&c, text)...), nil
}

// Init writes a file in which every setting is explained and commented out, so that defaults stay defaults. It refuses
// to replace a file that is there.
func Init(path string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.Wrap(classOf(err), err, "write configuration")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, "%s exists already", path).WithHint("banger config show")
	}
	if err != nil {
		return fault.Wrap(classOf(err), err, "write configuration")
	}
	_, err = f.WriteString(commented())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fault.Wrap(classOf(err), errors.Join(err, os.Remove(path)), "write configuration")
	}
	return nil
}

func commented() string {
	var b strings.Builder
	b.WriteString("# Configuration of banger. What is commented out has the value that is shown.\n")
	last, standard := "", Default()
	for _, k := range keys() {
		table, name, _ := strings.Cut(k.name, ".")
		if table != last {
			fmt.Fprintf(&b, "\n[%s]\n", table)
			last = table
		}
		fmt.Fprintf(&b, "# %s\n#%s = %s\n", k.comment, name, k.literal(k.value(&standard)))
	}
	return b.String() + catalogHelp
}

// Set changes one setting in the file, which is made if need be, and leaves every other line of it as it is. The value
// is checked as Load would; nothing is written when it is refused.
func Set(path, name, value string) error {
	i := slices.IndexFunc(keys(), func(k key) bool { return k.name == name })
	if table, _, _ := strings.Cut(name, "."); table == "catalog" {
		return fault.New(fault.Invalid, "%s: catalogs are tables of their own, which only a person can edit", name).
			WithHint("${EDITOR:-vi} %s", path)
	}
	if i < 0 {
		f := fault.New(fault.Invalid, "unknown key %q", name).WithHint("banger config show")
		if near := nearestKey(name); strings.Contains(near, ".") {
			f.Message += ", did you mean " + near + "?"
		}
		return f
	}
	k := keys()[i]
	if err := k.accepts(value); err != nil {
		return err
	}
	text, err := read(path)
	if err != nil {
		return err
	}
	if _, err := parse(path, text); err != nil { // what is wrong elsewhere is not made worse
		return err
	}
	after := replace(text, &k, k.literal(value))
	// The file may set the key in a way that replace does not see: inline tables, quoted keys.
	if got, err := parse(path, after); err != nil || !k.same(&got, value) {
		return fault.New(fault.Invalid, "%s sets %s in a way that only a person can edit", path, name).
			WithHint("${EDITOR:-vi} %s", path)
	}
	return write(path, after)
}

// accepts checks a value by itself.
func (k *key) accepts(value string) error {
	_, err := k.alone(value)
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Cause != nil { // without the line of a file that nobody wrote
		return fault.Wrap(fault.Invalid, f.Cause, "%s", k.name).WithHint("banger config show")
	}
	if k.kind == number {
		return fault.New(fault.Invalid, "%s: %q is not a whole number", k.name, value).WithHint("banger config show")
	}
	return fault.New(fault.Invalid, "%s: %q is not possible", k.name, value).WithHint("banger config show")
}

// alone is the configuration of a file with nothing but this setting.
func (k *key) alone(value string) (Config, error) {
	if k.kind == number && strings.ContainsAny(value, "\n#=") {
		return Config{}, fault.New(fault.Invalid, "not a number")
	}
	return parse("", k.name+" = "+k.literal(value)+"\n")
}

// same reports whether c has the value.
func (k *key) same(c *Config, value string) bool {
	want, err := k.alone(value)
	return err == nil && k.value(c) == k.value(&want)
}

// syntax is as much of TOML as a setting needs.
type syntax struct {
	header, setting *regexp.Regexp
	value           *regexp.Regexp // a string or list in one line or a bare word, which is all that a setting can be
}

func newSyntax() syntax {
	return syntax{
		header:  regexp.MustCompile(`^\s*\[\[?\s*([A-Za-z0-9_.-]+)\s*\]`),
		setting: regexp.MustCompile(`^(\s*)([A-Za-z0-9_.-]+)(\s*=\s*)`),
		value:   regexp.MustCompile(`^("(?:[^"\\]|\\.)*"|'[^']*'|\[(?:[^\]"'#]|"(?:[^"\\]|\\.)*"|'[^']*')*\]|[^\s#"'\[]+)`),
	}
}

// replace returns text with the key set to the literal: in its place if it has one, below its commented line, at the end
// of its table, or in a new table.
func replace(text string, k *key, literal string) string {
	table, name, _ := strings.Cut(k.name, ".")
	lines, syntax := strings.SplitAfter(text, "\n"), newSyntax()
	current, end, hint := "", -1, -1 // end: after the last line of the table that is not blank
	for i, line := range lines {
		if m := syntax.header.FindStringSubmatch(line); m != nil {
			current = m[1]
		} else if m := syntax.setting.FindStringSubmatch(line); m != nil && qualified(current, m[2]) == k.name {
			rest := line[len(m[0]):]
			if v := syntax.value.FindString(rest); v != "" {
				lines[i] = m[0] + literal + rest[len(v):]
			}
			return strings.Join(lines, "")
		}
		if current != table {
			continue
		}
		if strings.TrimSpace(line) != "" {
			end = i + 1
		}
		if bare, ok := strings.CutPrefix(strings.TrimSpace(line), "#"); ok {
			if m := syntax.setting.FindStringSubmatch(bare); m != nil && m[2] == name {
				hint = i + 1
			}
		}
	}
	if hint > 0 {
		end = hint
	}
	added := name + " = " + literal + "\n"
	if end < 0 {
		if strings.TrimSpace(text) != "" {
			table = "\n[" + table
		} else {
			table = "[" + table
		}
		return closed(text) + table + "]\n" + added
	}
	lines[end-1] = closed(lines[end-1])
	return strings.Join(slices.Insert(lines, end, added), "")
}

func qualified(table, name string) string {
	if table == "" {
		return name
	}
	return table + "." + name
}

// closed is text that ends with a newline, if it is not empty.
func closed(text string) string {
	if text == "" || strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}

func read(path string) (string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fault.Wrap(classOf(err), err, "read configuration")
	}
	return string(data), nil
}

// write replaces the file. One that is a link (dotfiles are often kept elsewhere) stays one.
func write(path, text string) error {
	mode := fs.FileMode(0o600)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
		if info, err := os.Stat(path); err == nil {
			mode = info.Mode().Perm()
		}
	} else if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.Wrap(classOf(err), err, "write configuration")
	}
	if err := atomicfile.Write(path, []byte(text), mode); err != nil {
		return fault.Wrap(classOf(err), err, "write configuration")
	}
	return nil
}

func classOf(err error) fault.Class {
	if errors.Is(err, fs.ErrPermission) {
		return fault.Denied
	}
	return fault.Internal
}
