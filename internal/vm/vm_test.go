package vm

import (
	"strings"
	"testing"

	"banger/internal/fault"
)

func TestParseName(t *testing.T) {
	for _, ok := range []string{"a", "dev", "a-b", "9lives", "0", strings.Repeat("x", 63), "a--b"} {
		if name, err := ParseName(ok); err != nil || string(name) != ok {
			t.Errorf("ParseName(%q) = %q, %v", ok, name, err)
		}
	}
	for _, tc := range []struct{ in, rule, hint string }{
		{"", "is empty", "dev"},
		{strings.Repeat("x", 64), "is longer than 63 characters", strings.Repeat("x", 63)},
		{"-a", "starts with '-'", "a"},
		{"a-", "ends with '-'", "a"},
		{"MyVM", "has upper-case letters", "myvm"},
		{"my vm", "has a character other than", "my-vm"},
		{"my_vm", "has a character other than", "my-vm"},
		{"a.b", "has a character other than", "a-b"},
		{"../etc", "has a character other than", "etc"},
		{"dév", "has a character other than", "d-v"},
		{"a\x00b", "has a character other than", "a-b"},
		{"a\n", "has a character other than", "a"},
		{"---", "starts with '-'", "dev"},
	} {
		_, err := ParseName(tc.in)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.rule) {
			t.Errorf("ParseName(%q): %v, want %q", tc.in, err, tc.rule)
		}
		if want := "banger vm run --name " + tc.hint; fault.HintOf(err) != want {
			t.Errorf("ParseName(%q) hint %q, want %q", tc.in, fault.HintOf(err), want)
		}
	}
}

func FuzzSuggestIsAlwaysValid(f *testing.F) {
	for _, s := range []string{"", "My VM", "---", strings.Repeat("-a", 100), "é", strings.Repeat("a", 62) + "--b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := ParseName(Suggest(s)); err != nil {
			t.Errorf("Suggest(%q) = %q: %v", s, Suggest(s), err)
		}
	})
}

func TestGeneratedNamesAreValidAndNotTaken(t *testing.T) {
	seen := map[string]bool{}
	for range 2000 {
		name := GenerateName(func(s string) bool { return seen[s] })
		if seen[string(name)] {
			t.Fatalf("%s twice", name)
		}
		if _, err := ParseName(string(name)); err != nil {
			t.Fatal(err)
		}
		seen[string(name)] = true
	}
	crowded := GenerateName(func(s string) bool { return strings.Count(s, "-") < 2 }) // every pair of words is taken
	if _, err := ParseName(string(crowded)); err != nil {
		t.Error(err)
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]uint64{
		"512M": 512 << 20, "10G": 10 << 30, "1.5g": 3 << 29, "4096": 4096, "2GiB": 2 << 30, "1tb": 1 << 40, "64 k": 64 << 10,
	} {
		got, err := ParseSize(strings.ReplaceAll(in, " ", ""))
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "G", "-1G", "0", "1X", "1e30", "NaN", "Inf", "10 G B", "0x10"} {
		if got, err := ParseSize(in); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseSize(%q) = %d, %v; want a fault", in, got, err)
		}
	}
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1 << 20: "1M", 3 << 29: "1.5G", 10 << 30: "10G"} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Spec{Name: "a", CPUs: 1, Memory: MinMemory, Disk: MinDisk, Env: []string{"A=", "B=c=d"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Spec){
		"cpus":     func(s *Spec) { s.CPUs = 0 },
		"memory":   func(s *Spec) { s.Memory-- },
		"disk":     func(s *Spec) { s.Disk-- },
		"big disk": func(s *Spec) { s.Disk = MaxDisk + 1 },
		"env":      func(s *Spec) { s.Env = []string{"A"} },
		"env name": func(s *Spec) { s.Env = []string{"=x"} },
		"env nul":  func(s *Spec) { s.Env = []string{"A=\x00"} },
	} {
		bad := good
		if spoil(&bad); !fault.Is(bad.Validate(), fault.Invalid) {
			t.Errorf("%s: %v", name, bad.Validate())
		}
	}
}

func TestEveryStateLeadsToDeletingAndNothingLeavesIt(t *testing.T) {
	for state := range transitions {
		if state != Deleting && !state.CanGo(Deleting) {
			t.Errorf("%s cannot be deleted", state)
		}
		if Deleting.CanGo(state) {
			t.Errorf("deleting can go to %s", state)
		}
		if got, err := ParseState(string(state)); err != nil || got != state {
			t.Errorf("ParseState(%q) = %q, %v", state, got, err)
		}
	}
	if _, err := ParseState("gone"); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
