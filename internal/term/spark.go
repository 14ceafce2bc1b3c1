package term

import (
	"math"
	"strings"
)

// The heights of a spark line's characters, from nothing to full.
var (
	blocks      = []rune("▁▂▃▄▅▆▇█")
	asciiBlocks = []rune("_.:-=+*#")
)

// utf8Locale reports whether the environment's locale is one of UTF-8, by the precedence that POSIX gives its variables.
func utf8Locale(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := getenv(name); value != "" {
			value = strings.ToLower(value)
			return strings.Contains(value, "utf-8") || strings.Contains(value, "utf8")
		}
	}
	return false
}

// Spark draws the last width of values in one character each, the newest at the right edge. A value of top or more is
// full height; a top of 0 or less means the largest value there is. What is no number is left empty.
func (t *Term) Spark(values []float64, width int, top float64) string {
	width = max(width, 0)
	values = values[max(len(values)-width, 0):]
	if top <= 0 {
		for _, v := range values {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				top = max(top, v)
			}
		}
	}
	heights := asciiBlocks
	if t.utf8 {
		heights = blocks
	}
	line := make([]rune, 0, width)
	for range width - len(values) {
		line = append(line, ' ')
	}
	for _, v := range values {
		if math.IsNaN(v) {
			line = append(line, ' ')
			continue
		}
		level := 0
		if v > 0 && top > 0 {
			level = int(math.Ceil(min(v/top, 1) * float64(len(heights)-1)))
		}
		line = append(line, heights[level])
	}
	return string(line)
}
