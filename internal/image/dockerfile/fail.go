package dockerfile

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"banger/internal/fault"
)

// maxShown is how much of a line an error shows.
const maxShown = 120

// fail returns the one kind of error of this package: where, what and what to do, and the line's text.
func (p *Plan) fail(line int, text, format string, args ...any) error {
	message := fmt.Sprintf("%s:%d: ", p.Name, max(line, 1)) + fmt.Sprintf(format, args...)
	if text = oneLine(text, maxShown); text != "" {
		message += ": " + text
	}
	return fault.New(fault.Invalid, "%s", message)
}

func (p *Plan) failAt(n *parser.Node, format string, args ...any) error {
	return p.fail(n.StartLine, n.Original, format, args...)
}

// located turns an error of BuildKit's parser about the file into ours.
func (p *Plan) located(err error, file []byte) error {
	line := 1
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
		line = at.Locations[0][0].Start.Line
	}
	line = max(line, 1)
	text := ""
	if lines := strings.SplitN(string(file), "\n", line+1); line <= len(lines) {
		text = lines[line-1]
	}
	return p.fail(line, text, "%s", plain(err))
}

func (p *Plan) warn(line int, format string, args ...any) {
	p.Warnings = append(p.Warnings, Warning{line, fmt.Sprintf(format, args...)})
}

// plain is the message of an error as banger's read: lower case, unless it begins with the name of an instruction, and
// without control characters.
func plain(err error) string {
	text := oneLine(err.Error(), 2*maxShown)
	first, size := utf8.DecodeRuneInString(text)
	second, _ := utf8.DecodeRuneInString(text[size:])
	if unicode.IsUpper(first) && unicode.IsLower(second) {
		text = string(unicode.ToLower(first)) + text[size:]
	}
	return strings.TrimSuffix(text, ".")
}

// password is that of a URL.
var password = regexp.MustCompile(`(://[^/@:\s]*):[^/@\s]*@`)

// oneLine makes text safe and short enough for one line of a terminal. Passwords in URLs are taken out.
func oneLine(text string, limit int) string {
	text = password.ReplaceAllString(text, "$1:xxxxx@")
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	if utf8.RuneCountInString(text) <= limit {
		return text
	}
	return string([]rune(text)[:limit-3]) + "..."
}

func defaultLabel(index int) string { return "stage-" + strconv.Itoa(index) }
