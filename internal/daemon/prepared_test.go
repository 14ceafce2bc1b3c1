package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bangerv1 "banger/proto/banger/v1"
)

// prepared waits for the prepared template that follows the start of a VM, and returns its key.
func (h *host) prepared() string {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, t := range h.templates() {
			if _, err := os.Stat(filepath.Join(h.cfg.Paths.Templates(), t.GetKey(), "disk.ext4")); err == nil {
				return t.GetKey()
			}
		}
	}
	h.t.Fatalf("no prepared template: %v", h.templates())
	return ""
}

// The second VM of a kind starts from a guest that has everything but a name.
func TestVMsStartFromAPreparedTemplate(t *testing.T) {
	h := newHost(t)
	h.withTemplates("")
	h.cfg.Times.Lull = 20 * time.Millisecond
	h.run()
	first := h.create("first")
	key := h.prepared()
	if first.GetFromTemplate() == key {
		t.Errorf("the first vm: %v", first)
	}
	second := h.create("second")
	launch := h.launched(second)
	if second.GetFromTemplate() != key || !launch.Prepared || second.GetTemplateFault() != "" {
		t.Errorf("the second vm: %v, %+v", second, launch)
	}
	// Its disk is not new any more at the next start; one of another size never was like it.
	if _, err := h.stop("second"); err != nil {
		t.Fatal(err)
	}
	if v, err := h.start("second"); err != nil || v.GetFromTemplate() == key || h.launched(v).Prepared {
		t.Errorf("started again: %v, %v", v, err)
	}
	op := h.wait(h.begin(&bangerv1.VMSpec{Name: "other", DiskBytes: 3 << 30}, true))
	if other := h.get("other"); op.GetState() != "done" || other.GetFromTemplate() == key {
		t.Errorf("another disk: %v, %v", other, op)
	}
	h.inOrder()
}

// A prepared template that was damaged is dropped. The VM starts nevertheless, and says so.
func TestDamagedPreparedTemplate(t *testing.T) {
	h := newHost(t)
	h.withTemplates("")
	h.cfg.Times.Lull = 20 * time.Millisecond
	h.run()
	h.create("first")
	key := h.prepared()
	flip(t, filepath.Join(h.cfg.Paths.Templates(), key, "state"))
	second := h.create("second")
	if second.GetFromTemplate() == key || second.GetFromTemplate() == "" || !strings.Contains(second.GetTemplateFault(), key) {
		t.Errorf("%v", second)
	}
	if again := h.prepared(); again != key {
		t.Errorf("made anew: %s, was %s", again, key)
	}
	h.inOrder()
}
