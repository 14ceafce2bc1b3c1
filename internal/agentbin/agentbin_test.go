package agentbin

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/fault"
)

func TestBinary(t *testing.T) {
	t.Setenv(EnvOverride, "")
	data, err := Binary()
	switch {
	case err == nil && string(data[:4]) != "\x7fELF":
		t.Errorf("the embedded agent is no program: %q", data[:4])
	case err != nil && (!fault.Is(err, fault.Unavailable) || fault.HintOf(err) != "make build"):
		t.Errorf("err = %v, hint %q", err, fault.HintOf(err))
	}
	path := filepath.Join(t.TempDir(), "agent")
	t.Setenv(EnvOverride, path)
	if _, err := Binary(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("override that is not there: %v", err)
	}
	if err := os.WriteFile(path, []byte("other"), 0o755); err != nil {
		t.Fatal(err)
	}
	if data, err := Binary(); err != nil || string(data) != "other" {
		t.Errorf("override: %q, %v", data, err)
	}
}
