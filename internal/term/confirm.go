package term

import (
	"context"
	"errors"
	"io"
	"strings"
)

// longestAnswer bounds what is read of an answer; no sensible one is longer.
const longestAnswer = 256

// CanAsk reports whether somebody is there to answer a question: a person reads stderr and types into stdin.
func (t *Term) CanAsk() bool {
	return t.errFD >= 0 && t.InputTTY() && t.Foreground() && !t.JSON()
}

// Confirm asks a question and reports whether the answer is yes. Everything but "y" and "yes" is no, also an empty line and
// the end of the input. It ends with ctx. Only for a Term that CanAsk.
func (t *Term) Confirm(ctx context.Context, question string) (bool, error) {
	in, err := t.Input()
	if err != nil {
		return false, err
	}
	defer in.Close()
	defer context.AfterFunc(ctx, in.Stop)()
	t.text(Sanitize(question) + " [y/N] ")
	answer, err := firstLine(in)
	if ctx.Err() != nil || !strings.HasSuffix(answer, "\n") {
		t.text("\n") // nobody has typed the end of the line
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", err
}

// firstLine reads a line with its end, or what there is of it.
func firstLine(r io.Reader) (string, error) {
	var line []byte
	buf := make([]byte, longestAnswer)
	for len(line) < longestAnswer {
		n, err := r.Read(buf)
		line = append(line, buf[:n]...)
		if i := strings.IndexByte(string(line), '\n'); i >= 0 {
			return string(line[:i+1]), nil
		}
		if errors.Is(err, io.EOF) {
			return string(line), nil
		}
		if err != nil {
			return "", err
		}
	}
	return string(line), nil
}
