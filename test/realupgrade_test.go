package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A banger with another agent makes another template. VMs that run go on with the agent they were started with; the old
// template goes when the last of them has ended.
func TestRealUpgrade(t *testing.T) {
	dir, vars := realHome(t)
	kind := []string{"--cpus", "1", "--memory", "256M", "--disk", "1G"}
	must(t, vars, append([]string{"vm", "run", "--detach", "--name", "old"}, kind...)...)
	old := originOf(t, vars, "old")
	if old.Template == "" || old.Fault != "" {
		t.Fatalf("old from %+v", old)
	}
	agent, err := os.ReadFile(filepath.Join("..", "internal", "agentbin", "dist", "banger-agent"))
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(dir, "agent")
	if err := os.WriteFile(changed, append(agent, "another build"...), 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, vars, "daemon", "stop")
	upgraded := append(slices.Clone(vars), "BANGER_AGENT="+changed)
	must(t, upgraded, append([]string{"vm", "run", "--detach", "--name", "new"}, kind...)...)
	made := originOf(t, upgraded, "new")
	if made.Template == "" || made.Template == old.Template || made.Fault != "" {
		t.Errorf("new from %+v, old from %+v", made, old)
	}
	for _, name := range []string{"old", "new"} {
		if got := inGuest(t, upgraded, name, "hostname"); got != name {
			t.Errorf("%s calls itself %q", name, got)
		}
	}
	if got := templatesIn(t, upgraded); len(got) != 2 {
		t.Errorf("templates while both are in use: %v", got)
	}
	must(t, upgraded, "vm", "stop", "old")
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		got := templatesIn(t, upgraded)
		if slices.Equal(got, []string{made.Template}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("templates %v, want only %s", got, made.Template)
		}
	}
	must(t, upgraded, "vm", "start", "old")
	if o := originOf(t, upgraded, "old"); o.Template != made.Template {
		t.Errorf("old from %+v, want %s", o, made.Template)
	}
}

// templatesIn returns the keys of all templates that have no image. One with an image may come at any time, when nothing is
// to be done.
func templatesIn(t *testing.T, vars []string) (keys []string) {
	t.Helper()
	var all []struct {
		Key   string `json:"key"`
		Image string `json:"image"`
	}
	text := must(t, vars, "template", "list", "--format", "json")
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, one := range all {
		if one.Image == "" {
			keys = append(keys, one.Key)
		}
	}
	return keys
}
