package debarchive

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Source is one suite at one URI, as the host's apt is configured to use it.
type Source struct {
	URI        string
	Suite      string
	Components []string
	SignedBy   []string // key files; empty: whatever apt trusts
	Key        string   // an armored key in the configuration itself
	NoExpiry   bool     // check-valid-until=no
}

// HostSources reads the apt configuration below root: etc/apt/sources.list and sources.list.d, in both formats, in
// apt's order. Sources of source packages and disabled ones are left out, and so are lines that cannot be understood:
// it is for apt to complain about them.
func HostSources(root string) []Source {
	apt := filepath.Join(root, "etc", "apt")
	var out []Source
	if data, err := os.ReadFile(filepath.Join(apt, "sources.list")); err == nil {
		out = append(out, parseOneLine(data)...)
	}
	entries, err := os.ReadDir(filepath.Join(apt, "sources.list.d")) // sorted by name
	if err != nil {
		return out
	}
	valid := regexp.MustCompile(`^[A-Za-z0-9_.-]+\.(list|sources)$`) // apt ignores all others
	for _, e := range entries {
		if !valid.MatchString(e.Name()) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(apt, "sources.list.d", e.Name()))
		switch {
		case err != nil:
		case strings.HasSuffix(e.Name(), ".list"):
			out = append(out, parseOneLine(data)...)
		default:
			out = append(out, parseDeb822Sources(data)...)
		}
	}
	return out
}

// parseOneLine parses the format "deb [option=value ...] uri suite component...".
func parseOneLine(data []byte) []Source {
	var out []Source
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")), " ")
		if kind != "deb" {
			continue
		}
		rest = strings.TrimSpace(rest)
		options := ""
		if strings.HasPrefix(rest, "[") {
			var closed bool
			if options, rest, closed = strings.Cut(rest[1:], "]"); !closed {
				continue
			}
		}
		words := strings.Fields(rest)
		if len(words) < 2 {
			continue
		}
		s := Source{URI: words[0], Suite: words[1], Components: words[2:]}
		for _, option := range strings.Fields(options) {
			key, value, _ := strings.Cut(option, "=")
			switch strings.ToLower(key) {
			case "signed-by":
				s.SignedBy = keyFiles(strings.Split(value, ","))
			case "check-valid-until":
				s.NoExpiry = isNo(value)
			}
		}
		out = append(out, s)
	}
	return out
}

// parseDeb822Sources parses the format of *.sources files.
func parseDeb822Sources(data []byte) []Source {
	var out []Source
	for _, p := range parseParagraphs(data) {
		if !slices.Contains(strings.Fields(p["types"]), "deb") || isNo(p["enabled"]) {
			continue
		}
		signedBy, key := p["signed-by"], ""
		if strings.Contains(signedBy, "-----BEGIN PGP") {
			key, signedBy = unfoldKey(signedBy), ""
		}
		files := keyFiles(strings.FieldsFunc(signedBy, func(r rune) bool { return strings.ContainsRune(", \t\n", r) }))
		for _, uri := range strings.Fields(p["uris"]) {
			for _, suite := range strings.Fields(p["suites"]) {
				out = append(out, Source{
					URI: uri, Suite: suite, Components: strings.Fields(p["components"]),
					SignedBy: files, Key: key, NoExpiry: isNo(p["check-valid-until"]),
				})
			}
		}
	}
	return out
}

// keyFiles keeps the paths of a Signed-By value. The others are fingerprints, which choose among the keys that apt
// trusts anyway.
func keyFiles(values []string) []string {
	var out []string
	for _, v := range values {
		if filepath.IsAbs(v) {
			out = append(out, v)
		}
	}
	return out
}

// unfoldKey undoes what a deb822 field does to an armored key: each line is indented and an empty one is a dot.
func unfoldKey(value string) string {
	var b strings.Builder
	for line := range strings.Lines(value) {
		line = strings.TrimSpace(line)
		if line == "." {
			line = ""
		}
		b.WriteString(line + "\n")
	}
	return strings.TrimLeft(b.String(), "\n")
}

func isNo(value string) bool {
	return slices.Contains([]string{"no", "false", "without", "off", "disable", "0"}, strings.ToLower(value))
}
