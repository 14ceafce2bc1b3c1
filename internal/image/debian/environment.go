package debian

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// environment is the caller's, without what would lead perl, apt, dpkg or a maintainer script astray, with what the
// hooks need and the host's apt proxy: mmdebstrap's apt does not read the host's apt.conf.
func environment(ctx context.Context, scratch string, s aptSources) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		for _, prefix := range []string{"LC_", "LANG", "PERL", "APT_", "DEB", "DPKG_", "MMDEBSTRAP_", "BANGER_", "TMP"} {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	})
	for _, scheme := range []string{"http", "https"} {
		name := scheme + "_proxy"
		if os.Getenv(name) == "" {
			if proxy := aptProxy(ctx, scheme); proxy != "" {
				env = append(env, name+"="+proxy)
			}
		}
	}
	return append(env,
		"LC_ALL=C.UTF-8", "TMPDIR="+scratch, "BANGER_SOURCES="+s.guest, "BANGER_KEYS="+strings.Join(s.keys, "\n"),
		"PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin", // an ordinary user's has them not
	)
}

// aptProxy returns the host's setting Acquire::<scheme>::Proxy, or "".
func aptProxy(ctx context.Context, scheme string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "apt-config", "shell", "proxy", "Acquire::"+scheme+"::Proxy").Output()
	if err != nil {
		return "" // no apt, or a broken configuration: mmdebstrap will say so
	}
	value := strings.TrimSpace(string(out))
	value = strings.TrimSuffix(strings.TrimPrefix(value, "proxy='"), "'")
	if value == "DIRECT" || strings.ContainsAny(value, "'\n") {
		return ""
	}
	return value
}
