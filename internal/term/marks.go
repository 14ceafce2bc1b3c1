package term

import (
	"strings"
	"unicode/utf8"
)

// Mark is one line of a check list, with a sign in front and maybe a hint below.
type Mark struct{ Sign, Name, Text, Hint string }

// Marks writes a check list to stdout. Long texts are wrapped on a terminal: there is nothing in them that may be cut.
func (t *Term) Marks(marks []Mark, paint func(sign string) string) error {
	signs, names := 0, 0
	for _, m := range marks {
		signs = max(signs, utf8.RuneCountInString(m.Sign))
		names = max(names, utf8.RuneCountInString(m.Name))
	}
	indent := strings.Repeat(" ", signs+names+4)
	var b strings.Builder
	for _, m := range marks {
		pad := func(s string, width int) string { return strings.Repeat(" ", width-utf8.RuneCountInString(s)+2) }
		b.WriteString(t.paint(t.outFD, paint(m.Sign), m.Sign) + pad(m.Sign, signs) + m.Name + pad(m.Name, names))
		b.WriteString(wrap(Sanitize(m.Text), t.Width()-len(indent), indent) + "\n")
		if m.Hint != "" {
			b.WriteString(indent + t.paint(t.outFD, dim, "hint: ") + Sanitize(m.Hint) + "\n")
		}
	}
	return t.answer(b.String())
}

// wrap breaks s at spaces into lines of at most width characters; all but the first get the indent. A width that makes
// no sense means no breaks.
func wrap(s string, width int, indent string) string {
	if width < 20 {
		return s
	}
	var b strings.Builder
	column := 0
	for i, word := range strings.Fields(s) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+n > width:
			b.WriteString("\n" + indent)
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String()
}
