package dockerfile

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Bounds of variables. A few lines that double a variable each time would otherwise fill the memory.
const (
	maxValue = 128 << 10 // the kernel takes no longer one either (MAX_ARG_STRLEN)
	maxVars  = 1 << 20   // all of them together
	maxWord  = 256 << 10 // an instruction before and its words after expansion
)

// vars are the variables of a stage in the order in which they were first set. The zero value is empty.
type vars struct {
	list  []string // NAME=VALUE
	bytes int
}

func (v *vars) clone() *vars { return &vars{list: slices.Clone(v.list), bytes: v.bytes} }

func (v *vars) find(name string) int {
	return slices.IndexFunc(v.list, func(kv string) bool {
		return len(kv) > len(name) && kv[len(name)] == '=' && kv[:len(name)] == name
	})
}

func (v *vars) get(name string) (string, bool) {
	if i := v.find(name); i >= 0 {
		return v.list[i][len(name)+1:], true
	}
	return "", false
}

// put sets a variable whatever its size.
func (v *vars) put(name, value string) {
	kv := name + "=" + value
	v.bytes += len(kv)
	if i := v.find(name); i >= 0 {
		v.bytes -= len(v.list[i])
		v.list[i] = kv
		return
	}
	v.list = append(v.list, kv)
}

// set is put for what a Dockerfile says.
func (v *vars) set(name, value string) error {
	if strings.ContainsRune(name, '=') || strings.ContainsRune(name+value, 0) {
		return fmt.Errorf("%q cannot be a variable: a name has no '=', and neither has a NUL", name)
	}
	if len(name)+len(value) > maxValue {
		return fmt.Errorf("%.40s is longer than %d bytes", name, maxValue)
	}
	v.put(name, value)
	if v.bytes > maxVars {
		return fmt.Errorf("the variables together are longer than %d bytes", maxVars)
	}
	return nil
}

// metered hands out values to the lexer until there have been too many.
type metered struct {
	*vars
	left int
	over bool
}

// Get implements shell.EnvGetter.
func (m *metered) Get(name string) (string, bool) {
	value, ok := m.get(name)
	if len(value) > m.left {
		m.over = true
		return "", ok
	}
	m.left -= len(value)
	return value, ok
}

// Keys implements shell.EnvGetter.
func (m *metered) Keys() []string {
	out := make([]string, 0, len(m.list))
	for _, kv := range m.list {
		name, _, _ := strings.Cut(kv, "=")
		out = append(out, name)
	}
	return out
}

var errTooLong = fmt.Errorf("the expanded text is longer than %d bytes", maxWord)

// pattern is the beginning of ${NAME/PATTERN/TEXT}, ${NAME#PATTERN} or ${NAME%PATTERN}.
var pattern = regexp.MustCompile(`\$\{(?:[\pL\pN_]+|[@*#?\-$!0])([/#%])`)

// meter returns the getter for one expansion of word. Its allowance bounds the work. Where a pattern is matched, and its
// text can be put between any two bytes of a value, the product of both lengths counts; one inside another is refused.
func meter(word string, v *vars) (*metered, error) {
	m := &metered{vars: v, left: maxWord}
	if len(word) > maxWord {
		return nil, errTooLong
	}
	found := pattern.FindAllStringSubmatch(word, -1)
	if len(found) == 0 {
		return m, nil
	}
	if slices.ContainsFunc(found, func(f []string) bool { return f[1] == "/" }) && nested(word) {
		return nil, errors.New("a ${...} inside a ${NAME/PATTERN/TEXT} is not supported: use another variable for it")
	}
	m.left = (64 << 20) / (len(word) + 8<<10)
	return m, nil
}

// nested reports whether a ${ stands between another one and its end.
func nested(word string) bool {
	for rest := word; ; {
		_, after, ok := strings.Cut(rest, "${")
		if !ok {
			return false
		}
		end, inner := strings.IndexByte(after, '}'), strings.Index(after, "${")
		if inner >= 0 && (end < 0 || inner < end) {
			return true
		}
		rest = after
	}
}

// expand returns word with variables replaced and quotes removed, as one word.
func (p *Plan) expand(word string, v *vars) (string, error) {
	return expandWith(shell.NewLex(p.escape), word, v)
}

// expandWords is expand for a word that can become several.
func (p *Plan) expandWords(word string, v *vars) ([]string, error) {
	m, err := meter(word, v)
	if err != nil {
		return nil, err
	}
	words, err := shell.NewLex(p.escape).ProcessWords(word, m)
	if m.over || total(words) > maxWord {
		return nil, errTooLong
	}
	return words, lexError(err)
}

// expandRaw replaces variables in a heredoc and leaves quotes alone.
func expandRaw(text string, v *vars) (string, error) {
	lex := shell.NewLex('\\')
	lex.SkipProcessQuotes = true
	return expandWith(lex, text, v)
}

// display returns the text of an instruction for people: variables that are set are shown with their values.
func (p *Plan) display(text string, v *vars) string {
	lex := shell.NewLex(p.escape)
	lex.RawQuotes, lex.RawEscapes, lex.SkipUnsetEnv = true, true, true
	out, err := expandWith(lex, text, v)
	if err != nil {
		return text
	}
	return out
}

func expandWith(lex *shell.Lex, word string, v *vars) (string, error) {
	m, err := meter(word, v)
	if err != nil {
		return "", err
	}
	out, _, err := lex.ProcessWord(word, m)
	if m.over || len(out) > maxWord {
		return "", errTooLong
	}
	return out, lexError(err)
}

// lexError takes the quoted word out of the lexer's message: the line is shown anyway.
func lexError(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if strings.Contains(text, "unsupported modifier (\uFFFD)") {
		return errors.New("syntax error: missing '}'")
	}
	if strings.HasPrefix(text, "failed to process ") {
		if i := strings.LastIndex(text, `": `); i >= 0 {
			return errors.New(text[i+3:])
		}
	}
	return err
}

func total(words []string) int {
	n := 0
	for _, w := range words {
		n += len(w)
	}
	return n
}
