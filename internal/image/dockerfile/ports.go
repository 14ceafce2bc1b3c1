package dockerfile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"
)

// expose adds ports: 80, 80/udp, 8000-8010/tcp.
func (r *resolver) expose(c *instructions.ExposeCommand) error {
	known := map[string]bool{}
	for _, port := range r.cfg.ExposedPorts {
		known[port] = true
	}
	for _, arg := range c.Ports {
		words, err := r.plan.expandWords(arg, r.scope)
		if err != nil {
			return err
		}
		for _, word := range words {
			first, last, proto, err := parsePorts(word)
			if err != nil {
				return err
			}
			for n := first; n <= last; n++ {
				known[strconv.Itoa(n)+"/"+proto] = true
			}
		}
	}
	r.cfg.ExposedPorts = r.cfg.ExposedPorts[:0:0]
	for port := range known {
		r.cfg.ExposedPorts = append(r.cfg.ExposedPorts, port)
	}
	slices.SortFunc(r.cfg.ExposedPorts, comparePorts)
	return nil
}

// parsePorts reads one word of EXPOSE.
func parsePorts(word string) (first, last int, proto string, err error) {
	bad := fmt.Errorf("%q is not a port: write it as 80, 53/udp or 8000-8010/tcp", oneLine(word, 40))
	numbers, proto, _ := strings.Cut(word, "/")
	switch proto = strings.ToLower(proto); proto {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return 0, 0, "", bad
	}
	from, to, isRange := strings.Cut(numbers, "-")
	if !isRange {
		to = from
	}
	if first, err = strconv.Atoi(from); err != nil || first < 0 || first > 65535 {
		return 0, 0, "", bad
	}
	if last, err = strconv.Atoi(to); err != nil || last < first || last > 65535 {
		return 0, 0, "", bad
	}
	return first, last, proto, nil
}

// comparePorts orders by number, then by protocol.
func comparePorts(a, b string) int {
	na, pa, _ := strings.Cut(a, "/")
	nb, pb, _ := strings.Cut(b, "/")
	ia, _ := strconv.Atoi(na)
	ib, _ := strconv.Atoi(nb)
	if ia != ib {
		return ia - ib
	}
	return strings.Compare(pa, pb)
}

// checkSignal accepts SIGTERM, TERM and 15.
func checkSignal(text string) error {
	if n, err := strconv.Atoi(text); err == nil {
		if n >= 1 && n <= 64 {
			return nil
		}
	} else if name := strings.ToUpper(text); unix.SignalNum("SIG"+strings.TrimPrefix(name, "SIG")) != 0 || isRealtime(name) {
		return nil
	}
	return fmt.Errorf("%q is not a signal: write it as SIGTERM or 15", oneLine(text, 40))
}

// isRealtime accepts SIGRTMIN+3 and the like.
func isRealtime(name string) bool {
	name = strings.TrimPrefix(name, "SIG")
	for _, end := range []struct{ name, sign string }{{"RTMIN", "+"}, {"RTMAX", "-"}} {
		rest, ok := strings.CutPrefix(name, end.name)
		if !ok {
			continue
		}
		if rest == "" {
			return true
		}
		digits, ok := strings.CutPrefix(rest, end.sign)
		n, err := strconv.Atoi(digits)
		return ok && err == nil && n >= 0 && n <= 30
	}
	return false
}
