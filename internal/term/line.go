package term

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"banger/internal/vm"
)

const (
	spinner  = `|/-\`
	barCells = 20
	barFrom  = 110 // columns; narrower terminals get no bar
)

// line is the stage in at most width columns: spinner, name, message, and on the right counters and time.
func (s *stage) line(at phase, now time.Time, width, label, frame int) string {
	sign, until := string(spinner[frame%len(spinner)]), now
	switch at {
	case over:
		sign, until = "*", s.last
	case quiet:
		sign, until = "-", s.last
	case active:
	}
	left := fmt.Sprintf("%s %-*s  ", sign, label, Sanitize(s.update.Stage))
	right := s.right(at, until, width)
	message := Sanitize(s.update.Message)
	room := width - utf8.RuneCountInString(left) - utf8.RuneCountInString(right) - 2
	if room < minShrunk { // too narrow for all: the message goes
		return clip(strings.TrimRight(left, " ")+"  "+right, width)
	}
	message = clip(message, room)
	return left + message + strings.Repeat(" ", room-utf8.RuneCountInString(message)) + "  " + right
}

// right is what stands at the right edge: counters, bar, rate, time left, time so far.
func (s *stage) right(at phase, until time.Time, width int) string {
	var parts []string
	u := s.update
	if u.Total > 0 && width >= barFrom {
		full := int(min(u.Done, u.Total) * barCells / u.Total)
		parts = append(parts, "["+strings.Repeat("#", full)+strings.Repeat("-", barCells-full)+"]")
	}
	if c := counters(u.Done, u.Total, u.Unit); c != "" {
		parts = append(parts, c)
	}
	if s.rate > 0 && at == active && u.Unit == "bytes" { // other things do not all take the same time
		parts = append(parts, vm.FormatSize(uint64(s.rate))+"/s")
		if u.Total > u.Done {
			parts = append(parts, "eta "+FormatDuration(time.Duration(float64(u.Total-u.Done)/s.rate*float64(time.Second))))
		}
	}
	parts = append(parts, fmt.Sprintf("%6s", FormatDuration(until.Sub(s.began))))
	return strings.Join(parts, "  ")
}

// counters is "12M/34M 35%", "120/300 packages 40%", "12M", or "".
func counters(done, total uint64, unit string) string {
	if done == 0 && total == 0 {
		return ""
	}
	number, behind := func(n uint64) string { return strconv.FormatUint(n, 10) }, ""
	switch unit {
	case "bytes":
		number = vm.FormatSize
	case "":
	default:
		behind = " " + Sanitize(unit)
	}
	if total == 0 {
		return number(done) + behind
	}
	return fmt.Sprintf("%s/%s%s %d%%", number(done), number(total), behind, percent(done, total))
}

func percent(done, total uint64) int { return int(100 * (float64(min(done, total)) / float64(total))) }

// FormatDuration is a duration for people: "4.2s", "1m12s", "3h05m", "12d4h".
func FormatDuration(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", float64(d.Milliseconds()/100)/10)
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
