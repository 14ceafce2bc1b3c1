package dockerfile

import (
	"slices"
	"strings"

	"banger/internal/fault"
)

// platform is "linux/arm64/v8" in its parts.
type platform struct{ os, arch, variant string }

// architectures are other names of those that Go knows.
var architectures = map[string]string{"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "armel": "arm", "i386": "386"}

// parsePlatform reads OS/ARCH[/VARIANT], ARCH alone, or "linux".
func parsePlatform(text string) (platform, error) {
	parts := strings.Split(strings.ToLower(text), "/")
	var p platform
	switch {
	case len(parts) > 3 || slices.Contains(parts, ""):
		return p, fault.New(fault.Invalid, "%q is not a platform: write it as linux/amd64", text)
	case len(parts) == 1:
		p = platform{os: "linux", arch: parts[0]}
	default:
		p = platform{os: parts[0], arch: parts[1]}
	}
	if len(parts) == 3 {
		p.variant = parts[2]
	}
	if other, ok := architectures[p.arch]; ok {
		p.arch = other
	}
	if p.arch == "arm64" && p.variant == "v8" || p.arch == "amd64" && p.variant == "v1" {
		p.variant = ""
	}
	if p.os != "linux" {
		return p, fault.New(fault.Invalid, "platform %s: only linux images can be built", text)
	}
	if strings.ContainsFunc(p.arch+p.variant, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9') }) {
		return p, fault.New(fault.Invalid, "%q is not a platform: write it as linux/amd64", text)
	}
	return p, nil
}

func (p platform) String() string {
	out := p.os + "/" + p.arch
	if p.variant != "" {
		out += "/" + p.variant
	}
	return out
}

// platformArgs are the ARGs that every Dockerfile has: FROM lines see them, a stage that wants one repeats its name.
func platformArgs(target, build string, overrides map[string]string) *vars {
	out := &vars{}
	for _, side := range []struct{ prefix, text string }{{"BUILD", build}, {"TARGET", target}} {
		p, _ := parsePlatform(side.text) // was made by String
		for _, kv := range [][2]string{{"PLATFORM", side.text}, {"OS", p.os}, {"OSVERSION", ""}, {"ARCH", p.arch}, {"VARIANT", p.variant}} {
			name, value := side.prefix+kv[0], kv[1]
			if o, ok := overrides[name]; ok {
				value = o
			}
			out.put(name, value)
		}
	}
	return out
}
