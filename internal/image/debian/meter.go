package debian

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"banger/internal/progress"
)

// Limits of what is kept of the program's messages.
const (
	maxLine = 4096
	maxTail = 60
)

// meter turns the messages of mmdebstrap, apt and dpkg into progress, and keeps the last ones for the case of failure.
// apt's own status lines would need a descriptor that mmdebstrap does not pass on.
type meter struct {
	report  progress.Func
	pattern patterns

	// say is held while an update is made and reported, so that no later one overtakes it. It is taken before mu.
	say sync.Mutex

	mu       sync.Mutex // guards the fields that follow
	phase    phase
	root     string // of the tree
	packages uint64 // that this phase installs
	steps    uint64 // a package takes two: unpacked, set up
	bytes    uint64 // downloaded in this phase
	stream   uint64 // bytes of the tar stream; whoever reads it may be ahead of the messages
	total    uint64 // to download
	current  string // package
	tail     []string
}

// phase is what the program is at.
type phase int

const (
	phaseStart phase = iota
	phaseIndex
	phaseDownload
	phaseExtract
	phaseEssential
	phaseInstall
	phaseCustomize
	phaseWrite
	phaseDone
)

func newMeter(report progress.Func) *meter { return &meter{report: report, pattern: messages()} }

// patterns of the messages.
type patterns struct{ tempdir, newly, need, get, step *regexp.Regexp }

func messages() patterns {
	return patterns{
		tempdir: regexp.MustCompile(`^I: using (/.*) as tempdir`),
		newly:   regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`),
		need:    regexp.MustCompile(`^Need to get ([0-9.]+) ([kMGT]?B)[ /]`),
		get:     regexp.MustCompile(`^Get:\d+ .*?(\S+) (?:\S+) (?:\S+) \[([0-9.]+) ([kMGT]?B)\]$`),
		step:    regexp.MustCompile(`^(Unpacking|Setting up) ([a-z0-9][a-z0-9+.-]*)`),
	}
}

// line takes one message.
func (m *meter) line(text string) {
	if text == "" {
		return
	}
	m.say.Lock()
	defer m.say.Unlock()
	m.mu.Lock()
	m.tail = append(m.tail, text)
	if len(m.tail) > maxTail {
		m.tail = m.tail[1:]
	}
	changed := m.parse(text)
	u := m.update()
	m.mu.Unlock()
	if changed {
		m.report.Report(u)
	}
}

// parse enters what a message says; mu is held.
func (m *meter) parse(text string) bool {
	if strings.HasPrefix(text, "I: ") {
		return m.enter(text)
	}
	p := m.pattern
	if g := p.newly.FindStringSubmatch(text); g != nil {
		m.packages, _ = strconv.ParseUint(g[1], 10, 32)
	} else if g := p.need.FindStringSubmatch(text); g != nil {
		m.bytes, m.total = 0, size(g[1], g[2])
	} else if g := p.get.FindStringSubmatch(text); g != nil {
		m.bytes += size(g[2], g[3])
		m.current = ""
		if m.total > 0 {
			m.current = g[1]
		}
	} else if g := p.step.FindStringSubmatch(text); g != nil {
		m.steps++
		m.current = g[2]
	} else {
		return false
	}
	return true
}

// enter takes an "I: " message, by which mmdebstrap says what it does next; mu is held.
func (m *meter) enter(text string) bool {
	if g := m.pattern.tempdir.FindStringSubmatch(text); g != nil {
		m.root = g[1]
		return false
	}
	for prefix, next := range map[string]phase{
		"I: running apt-get update":   phaseIndex,
		"I: downloading packages":     phaseDownload,
		"I: extracting archives":      phaseExtract,
		"I: installing essential":     phaseEssential,
		"I: installing remaining":     phaseInstall,
		"I: running --customize-hook": phaseCustomize,
		"I: creating tarball":         phaseWrite,
		"I: removing tempdir":         phaseDone,
	} {
		if strings.HasPrefix(text, prefix) {
			m.phase, m.steps, m.bytes, m.total, m.current = next, 0, 0, 0, ""
			return true
		}
	}
	return false
}

// update is what is to be shown now; mu is held.
func (m *meter) update() progress.Update {
	u := progress.Update{Stage: "image"}
	switch m.phase {
	case phaseStart:
		u.Message = "preparing"
	case phaseIndex:
		u.Message, u.Done, u.Unit = "reading the archive's index", m.bytes, "bytes"
	case phaseExtract:
		u.Message, u.Done, u.Total, u.Unit = "unpacking the base system", min(m.steps, m.packages), m.packages, "packages"
	case phaseDownload, phaseEssential, phaseInstall:
		if m.steps == 0 && m.phase != phaseEssential {
			u.Message, u.Done, u.Total, u.Unit = words("downloading", m.current), min(m.bytes, m.total), m.total, "bytes"
			break
		}
		u.Message, u.Done, u.Total = words("installing", m.current), min(m.steps/2, m.packages), m.packages
		u.Unit = "packages"
	case phaseCustomize:
		u.Message = "tidying up"
	case phaseWrite:
		u.Message, u.Done, u.Unit = "writing the disk image", m.stream, "bytes"
	case phaseDone:
		u.Message = "removing the build's files"
	}
	return u
}

// words joins a verb and its object.
func words(verb, object string) string {
	if object == "" {
		return verb + " packages"
	}
	return verb + " " + object
}

// look is called now and then. The base system is unpacked without a word, so the packages that have brought their
// documentation are counted; otherwise the last update is repeated, as a sign of life.
func (m *meter) look() {
	m.say.Lock()
	defer m.say.Unlock()
	m.mu.Lock()
	if m.phase == phaseExtract && m.root != "" {
		if entries, err := os.ReadDir(filepath.Join(m.root, "usr/share/doc")); err == nil {
			m.steps = max(m.steps, uint64(len(entries)))
		}
	}
	u := m.update()
	m.mu.Unlock()
	m.report.Report(u)
}

// written counts bytes of the tar stream.
func (m *meter) written(n int) {
	m.mu.Lock()
	m.stream += uint64(n)
	m.mu.Unlock() // look reports it: reporting every read would be too often
}

// size reads apt's sizes, which are decimal: "30.6", "MB".
func size(number, unit string) uint64 {
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 || n > 1e6 {
		return 0
	}
	scale := map[string]float64{"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
	return uint64(n * scale)
}
