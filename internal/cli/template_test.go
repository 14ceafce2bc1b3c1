package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/preflight"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

type fakeTemplates struct {
	bangerv1connect.UnimplementedTemplateServiceHandler
	f *fakeDaemon
}

func (s fakeTemplates) List(context.Context, *connect.Request[bangerv1.ListTemplatesRequest]) (*connect.Response[bangerv1.ListTemplatesResponse], error) {
	return connect.NewResponse(&bangerv1.ListTemplatesResponse{Templates: s.f.template, Off: len(s.f.template) == 0}), nil
}

func (s fakeTemplates) Remove(_ context.Context, req *connect.Request[bangerv1.RemoveTemplateRequest]) (*connect.Response[bangerv1.RemoveTemplateResponse], error) {
	for _, t := range s.f.template {
		if t.GetKey() == req.Msg.GetRef() {
			return connect.NewResponse(&bangerv1.RemoveTemplateResponse{Key: t.GetKey(), FreedBytes: t.GetUsedBytes()}), nil
		}
	}
	return nil, fault.New(fault.NotFound, "no template has the key %q", req.Msg.GetRef()).WithHint("banger template list")
}

func (s fakeTemplates) Prune(_ context.Context, req *connect.Request[bangerv1.PruneTemplatesRequest]) (*connect.Response[bangerv1.PruneTemplatesResponse], error) {
	out := &bangerv1.PruneTemplatesResponse{}
	for _, t := range s.f.template {
		if req.Msg.GetAll() || len(t.GetUsedBy()) == 0 {
			out.Pruned = append(out.Pruned, &bangerv1.Pruned{Kind: "template", Name: t.GetKey(), Bytes: t.GetUsedBytes()})
			out.FreedBytes += t.GetUsedBytes()
		}
	}
	return connect.NewResponse(out), nil
}

// templatesForTest is one template in use, one that is damaged and one that is switched off.
func templatesForTest() []*bangerv1.Template {
	now := time.Now()
	return []*bangerv1.Template{
		{Key: "aaaa", Vmm: "qemu", Cpus: 2, MemoryBytes: 1 << 30, Kernel: "6.1.0-x", UsedBytes: 90 << 20, LastUsedMs: now.Add(-3 * time.Second).UnixMilli(), UsedBy: []string{"dev", "web"}},
		{Key: "bbbb", Vmm: "qemu", Cpus: 1, MemoryBytes: 512 << 20, Kernel: "6.1.0-x", UsedBytes: 80 << 20, Problem: "its file state was changed"},
		{Key: "cccc", Failures: 3, LastFailure: "boom", Off: true},
	}
}

func TestTemplateCommands(t *testing.T) {
	home := shortDir(t)
	fake := &fakeDaemon{template: templatesForTest()}
	fake.start(t, home)
	for _, tc := range []struct {
		line string
		code int
		out  []string // each is part of stdout
		err  string   // part of stderr
	}{
		{"template list", 0, []string{"KEY", "IN USE BY", "dev, web", "2      1G", "its file state was changed", "off after 3 failures: boom"}, ""},
		{"template list --format json", 0, []string{`"used_by": [\n      "dev",`, `"problem": "its file state was changed"`, `"off": true`}, ""},
		{"template rm aaaa", 0, []string{"aaaa"}, ""},
		{"template rm aaaa nonesuch", fault.ExitCode(fault.NotFound), []string{"aaaa"}, `no template has the key "nonesuch"`},
		{"template rm", fault.ExitCode(fault.Invalid), nil, "needs the key of a template"},
		{"template prune", 0, []string{"bbbb", "80M"}, "80M would be free again"},
		{"template prune --all", 0, []string{"aaaa", "bbbb"}, "banger template prune --all --yes"},
		{"template prune --yes", 0, []string{"bbbb"}, "80M is free again"},
		{"template prune --yes --format json", 0, []string{`"removed": true`, `"freed_bytes": 83886080`}, ""},
		{"template warm --cpus 0", fault.ExitCode(fault.Invalid), nil, "at least 1 cpu"},
		{"template warm --memory 1M", fault.ExitCode(fault.Invalid), nil, "memory of 1M is too small"},
		{"template warm x", fault.ExitCode(fault.Invalid), nil, "takes no argument"},
	} {
		d, out, errOut := online(t, home)
		code := Main(t.Context(), strings.Fields(tc.line), d)
		for _, want := range tc.out {
			if want = strings.ReplaceAll(want, `\n`, "\n"); !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q lacks %q", tc.line, out, want)
			}
		}
		if code != tc.code || !strings.Contains(errOut.String(), tc.err) {
			t.Errorf("%s: code %d, stderr %q", tc.line, code, errOut)
		}
	}
}

func TestTemplatesOff(t *testing.T) {
	home := shortDir(t)
	fake := &fakeDaemon{}
	fake.start(t, home)
	d, _, errOut := online(t, home)
	if code := Main(t.Context(), []string{"template", "list"}, d); code != 0 || !strings.Contains(errOut.String(), "banger config set vmm.templates on") {
		t.Errorf("code %d, %q", code, errOut)
	}
}

// What was wrong with a template is said where a VM is started.
func TestNoteTemplate(t *testing.T) {
	for _, tc := range []struct {
		vm   *bangerv1.VM
		want string
	}{
		{&bangerv1.VM{FromTemplate: "aaaa"}, ""},
		{&bangerv1.VM{TemplateFault: "boom"}, "vm dev was booted, not started from a template: boom\n"},
		{&bangerv1.VM{FromTemplate: "aaaa", TemplateFault: "it was made anew"}, "vm dev: it was made anew\n"},
	} {
		d, _, errOut := newOnline(t, 0)
		tc.vm.Spec = &bangerv1.VMSpec{Name: "dev"}
		d.noteTemplate(tc.vm)
		if got := errOut.String(); !strings.HasSuffix(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%v: %q", tc.vm, got)
		}
	}
}

func TestTraits(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	text := "m1\nb1\nh1\n02:00:00:00:00:07\n0011\n1700000000\nfe800000000000000000000000000007\n"
	one, ok := parseTraits("one", text, now)
	if !ok || one != (traits{name: "one", machineID: "m1", bootID: "b1", hostname: "h1", mac: "02:00:00:00:00:07", random: "0011", linkLocal: "fe800000000000000000000000000007"}) {
		t.Fatalf("%+v", one)
	}
	for _, bad := range []string{"", "m1\n", strings.Replace(text, "1700000000", "now", 1), strings.Replace(text, "b1", "", 1)} {
		if got, ok := parseTraits("x", bad, now); ok {
			t.Errorf("%q: %+v", bad, got)
		}
	}
	two := traits{name: "two", machineID: "m2", bootID: "b1", hostname: "h2", mac: "02:00:00:00:00:08", random: "0011", linkLocal: one.linkLocal, offset: time.Hour}
	var failed []string
	for _, r := range compare(two, []traits{one}) {
		if r.Status == preflight.Fail {
			failed = append(failed, r.ID)
		}
	}
	if got := strings.Join(failed, " "); got != "boot-id link-local random-numbers clock" {
		t.Errorf("failed: %s", got)
	}
	if old, ok := parseTraits("old", strings.Join(strings.Split(text, "\n")[:6], "\n")+"\n", now); !ok || old.linkLocal != "" {
		t.Errorf("a guest without IPv6: %+v", old)
	}
	for _, r := range compare(one, nil) {
		if r.Status != preflight.OK {
			t.Errorf("alone: %+v", r)
		}
	}
}

func TestRelatedVMs(t *testing.T) {
	vm := func(id, template, from string) *bangerv1.VM {
		m := &bangerv1.VM{Id: id, FromTemplate: template}
		if from != "" {
			m.ForkedFrom = &bangerv1.VMOrigin{Id: from}
		}
		return m
	}
	for _, tc := range []struct {
		a, b *bangerv1.VM
		want bool
	}{
		{vm("a", "", ""), vm("b", "", ""), false},
		{vm("a", "t", ""), vm("b", "t", ""), true},
		{vm("a", "t", ""), vm("b", "u", ""), false},
		{vm("a", "t", ""), vm("b", "", "a"), true},
		{vm("b", "", "a"), vm("a", "t", ""), true},
		{vm("b", "", "a"), vm("c", "", "a"), true},
		{vm("b", "", "a"), vm("c", "", "d"), false},
	} {
		if got := related(tc.a, tc.b); got != tc.want {
			t.Errorf("%v and %v: %v", tc.a, tc.b, got)
		}
	}
	if got := origin(vm("b", "", "a"), 2).Detail; !strings.Contains(got, "2 other running vms have the same origin") {
		t.Error(got)
	}
}
