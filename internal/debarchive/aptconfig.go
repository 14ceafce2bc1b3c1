package debarchive

import (
	"context"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"time"
)

// aptConfig holds the scalar options of the host's apt, keys in lower case. It is nil on a host without apt.
type aptConfig map[string]string

// readAptConfig asks apt-config. A host where that does not work has no such options.
func readAptConfig(ctx context.Context) aptConfig {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil
	}
	return parseAptConfig(string(out))
}

// parseAptConfig parses lines of the form: Acquire::http::Proxy "http://proxy:3128";
func parseAptConfig(dump string) aptConfig {
	conf := aptConfig{}
	for line := range strings.Lines(dump) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		value = strings.TrimSuffix(value, ";")
		if !ok || len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
			continue
		}
		conf[strings.ToLower(key)] = value[1 : len(value)-1]
	}
	return conf
}

// proxy chooses as apt does: an option for the host, an option for the scheme, the environment. "DIRECT" is none.
func (c aptConfig) proxy(req *http.Request) (*url.URL, error) {
	prefix := "acquire::" + req.URL.Scheme + "::proxy"
	for _, key := range []string{prefix + "::" + strings.ToLower(req.URL.Hostname()), prefix} {
		switch value := c[key]; value {
		case "":
		case "DIRECT", "false":
			return nil, nil
		default:
			return url.Parse(value)
		}
	}
	return http.ProxyFromEnvironment(req)
}
