package debarchive

import (
	"bytes"
	"strings"
)

// parseParagraphs parses deb822 text: paragraphs of "Field: value" lines, where an indented line continues the value
// and a line that starts with # is a comment. Field names are returned in lower case, continued lines after a newline.
func parseParagraphs(data []byte) []map[string]string {
	var p paragraphs
	for line := range bytes.Lines(data) {
		line = bytes.TrimRight(line, " \t\r\n")
		switch {
		case len(line) == 0:
			p.endParagraph()
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			p.value.WriteByte('\n')
			p.value.Write(bytes.TrimSpace(line))
		default:
			p.endField()
			if name, value, ok := bytes.Cut(line, []byte(":")); ok {
				p.field = strings.ToLower(string(name))
				p.value.Write(bytes.TrimSpace(value))
			}
		}
	}
	p.endParagraph()
	return p.done
}

// paragraphs is the state of parseParagraphs. Values are built in a buffer: Release has fields of a thousand lines.
type paragraphs struct {
	done    []map[string]string
	current map[string]string
	field   string // being read; "" after a line that is no field
	value   bytes.Buffer
}

func (p *paragraphs) endField() {
	if p.field != "" {
		if p.current == nil {
			p.current = map[string]string{}
		}
		p.current[p.field] = p.value.String()
	}
	p.field = ""
	p.value.Reset()
}

func (p *paragraphs) endParagraph() {
	p.endField()
	if p.current != nil {
		p.done = append(p.done, p.current)
	}
	p.current = nil
}
