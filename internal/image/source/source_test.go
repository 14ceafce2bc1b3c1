package source

import (
	"strings"
	"testing"

	"banger/internal/fault"
)

func TestIdentity(t *testing.T) {
	base := Identity("sha256:c", []string{"sha256:a", "sha256:b"})
	if base != Identity("sha256:c", []string{"sha256:a", "sha256:b"}) || !strings.HasPrefix(base, "sha256:") || len(base) != 71 {
		t.Error(base)
	}
	for name, other := range map[string]string{
		"order":  Identity("sha256:c", []string{"sha256:b", "sha256:a"}),
		"fewer":  Identity("sha256:c", []string{"sha256:a"}),
		"config": Identity("sha256:d", []string{"sha256:a", "sha256:b"}),
	} {
		if other == base {
			t.Errorf("%s makes no difference", name)
		}
	}
	if Identity("c", nil) != Identity("c", []string{}) {
		t.Error("no layers are not an empty list of layers")
	}
}

func TestConfigDigest(t *testing.T) {
	c := Config{User: "a", Labels: map[string]string{"x": "1", "y": "2", "z": "3"}}
	first := ConfigDigest(c, "amd64")
	for range 20 { // maps have no order of their own
		if got := ConfigDigest(c, "amd64"); got != first {
			t.Fatalf("%s and %s", first, got)
		}
	}
	if ConfigDigest(c, "arm64") == first || ConfigDigest(Config{User: "b", Labels: c.Labels}, "amd64") == first {
		t.Error("different configurations have one digest")
	}
}

func TestCheck(t *testing.T) {
	for name, tt := range map[string]struct {
		c    Config
		want string // of the error; empty: it is good
	}{
		"empty":       {Config{}, ""},
		"usual":       {Config{User: "1000:1000", Workdir: "/srv", Env: []string{"A=", "B=c=d\n"}, Cmd: []string{"", "a\nb"}, ExposedPorts: []string{"80", "80/tcp", "8000-8010/udp"}}, ""},
		"user":        {Config{User: "a\nb"}, `the image's configuration has a bad user: "a\nb"`},
		"workdir":     {Config{Workdir: "/\x1b[2J"}, `the image's configuration has a bad working directory: "/\x1b[2J"`},
		"nul":         {Config{Cmd: []string{"a\x00b"}}, `the image's configuration has a bad command: "a\x00b"`},
		"nameless":    {Config{Env: []string{"x"}}, `the image's configuration has an environment variable without a name: "x"`},
		"long":        {Config{Env: []string{"A=" + strings.Repeat("x", maxText)}}, `the image's configuration has a bad environment: "A=` + strings.Repeat("x", 78) + `..."`},
		"port":        {Config{ExposedPorts: []string{"99999/tcp"}}, `the image's configuration exposes "99999/tcp", which is no port`},
		"protocol":    {Config{ExposedPorts: []string{"80/http"}}, `the image's configuration exposes "80/http", which is no port`},
		"range":       {Config{ExposedPorts: []string{"90-80"}}, `the image's configuration exposes "90-80", which is no port`},
		"half a port": {Config{ExposedPorts: []string{"80-"}}, `the image's configuration exposes "80-", which is no port`},
	} {
		err := tt.c.Check()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want || !fault.Is(err, fault.Invalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
