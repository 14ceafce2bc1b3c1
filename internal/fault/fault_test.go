package fault

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestClassOfOutermostFaultWins(t *testing.T) {
	inner := New(NotFound, "no such image").WithHint("banger image catalog")
	for _, tc := range []struct {
		name string
		err  error
		want Class
		hint string
		text string
	}{
		{"plain", errors.New("x"), Internal, "", "x"},
		{"fault", inner, NotFound, "banger image catalog", "no such image"},
		{"wrapped by fmt", fmt.Errorf("pull: %w", inner), NotFound, "banger image catalog", "pull: no such image"},
		{"re-classed", Wrap(Invalid, inner, "vm dev"), Invalid, "banger image catalog", "vm dev: no such image"},
		{"context kept", Context(inner, "vm dev"), NotFound, "banger image catalog", "vm dev: no such image"},
		{"cancelled", fmt.Errorf("wait: %w", context.Canceled), Cancelled, "", "wait: context canceled"},
		{"deadline", context.DeadlineExceeded, Timeout, "", "context deadline exceeded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := ClassOf(tc.err); got != tc.want {
				t.Errorf("class = %s, want %s", got, tc.want)
			}
			if got := HintOf(tc.err); got != tc.hint {
				t.Errorf("hint = %q, want %q", got, tc.hint)
			}
			if got := tc.err.Error(); got != tc.text {
				t.Errorf("text = %q, want %q", got, tc.text)
			}
		})
	}
	if Context(nil, "x") != nil {
		t.Error("Context(nil) is not nil")
	}
}

func TestExitCodesAreDistinctAndInBand(t *testing.T) {
	seen := map[int]Class{}
	for c, code := range classes {
		if code < 125 || code > 255 {
			t.Errorf("%s: exit code %d is outside 125..255", c, code)
		}
		if other, ok := seen[code]; ok {
			t.Errorf("%s and %s share exit code %d", c, other, code)
		}
		seen[code] = c
		if ParseClass(string(c)) != c {
			t.Errorf("ParseClass(%q) = %q", c, ParseClass(string(c)))
		}
	}
	if ParseClass("from the future") != Internal {
		t.Error("an unknown class is not internal")
	}
}
