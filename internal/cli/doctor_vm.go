package cli

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/preflight"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

const (
	traitsTimeout = 20 * time.Second // for one guest to say who it is
	mostCompared  = 16               // other VMs
	clockSlack    = 2 * time.Second  // the guest tells whole seconds
)

// traitsScript prints what no two VMs may have in common, a line each. It needs a shell and cat only; what is missing is
// an empty line.
const traitsScript = `cat /etc/machine-id 2>/dev/null || echo
cat /proc/sys/kernel/random/boot_id
cat /proc/sys/kernel/hostname
cat /sys/class/net/e*/address 2>/dev/null || echo
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo
date +%s
ll=; { while read -r a _ _ _ _ nic; do case $nic$a in e*fe80*) ll="$ll $a";; esac; done </proc/net/if_inet6; } 2>/dev/null; echo $ll`

// traits is what a guest says about itself.
type traits struct {
	name      string // of the VM
	machineID string
	bootID    string
	hostname  string
	mac       string
	random    string
	linkLocal string        // IPv6 addresses
	offset    time.Duration // of its clock to the host's
}

// runDoctorVM compares a VM with those that run from the same template, and with its clones and those that it is one of.
func runDoctorVM(ctx context.Context, ref string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: ref})))
	if err != nil {
		return err
	}
	if m.GetState() != string(vm.Running) {
		return fault.New(fault.Conflict, "vm %s is %s: only one that runs can be asked", m.GetSpec().GetName(), m.GetState()).
			WithHint("banger vm start %s", m.GetSpec().GetName())
	}
	others, err := siblings(ctx, c, m)
	if err != nil {
		return err
	}
	all, err := traitsOf(ctx, c, append([]*bangerv1.VM{m}, others...))
	if err != nil {
		return err
	}
	checks := append([]preflight.Result{origin(m, len(all)-1)}, compare(all[0], all[1:])...)
	return d.answerDoctor(checks, "vm "+m.GetSpec().GetName()+" is not told apart from others")
}

// origin says what a VM was started from.
func origin(m *bangerv1.VM, others int) preflight.Result {
	r := preflight.Result{ID: "template", Title: "started from", Status: preflight.OK}
	switch {
	case m.GetFromTemplate() == "" && m.GetTemplateFault() != "":
		r.Status, r.Detail, r.Hint = preflight.Warn, "it was booted: "+m.GetTemplateFault(), "banger template list"
	case m.GetFromTemplate() != "":
		r.Detail = fmt.Sprintf("template %s; %d other running vms are, too", m.GetFromTemplate(), others)
	case m.GetForkedFrom() != nil || others > 0:
		r.Detail = fmt.Sprintf("a fork; %d other running vms have the same origin", others)
		if from := m.GetForkedFrom(); from != nil {
			r.Detail = fmt.Sprintf("a fork of vm %s; %d other running vms have the same origin", from.GetName(), others)
		}
	default:
		r.Detail = "not a template: it shares nothing with others"
	}
	return r
}

// siblings are other VMs that run and have begun as the same machine.
func siblings(ctx context.Context, c *client.Client, m *bangerv1.VM) ([]*bangerv1.VM, error) {
	resp, err := message(c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{States: []string{string(vm.Running)}})))
	if err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(resp.GetVms(), func(o *bangerv1.VM) bool { return o.GetId() == m.GetId() || !related(m, o) })
	return others[:min(len(others), mostCompared)], nil
}

// related reports whether two VMs run from one template, or one is a fork of the other, or both of a third.
func related(a, b *bangerv1.VM) bool {
	if a.GetFromTemplate() != "" && a.GetFromTemplate() == b.GetFromTemplate() {
		return true
	}
	from, other := a.GetForkedFrom().GetId(), b.GetForkedFrom().GetId()
	return from == b.GetId() || other == a.GetId() || from != "" && from == other
}

// traitsOf asks guests who they are, all at once. The first one must answer; of the others those that do not are left out.
func traitsOf(ctx context.Context, c *client.Client, vms []*bangerv1.VM) ([]traits, error) {
	all, errs := make([]traits, len(vms)), make([]error, len(vms))
	var wg sync.WaitGroup
	for i, m := range vms {
		wg.Go(func() { all[i], errs[i] = readTraits(ctx, c, m) })
	}
	wg.Wait()
	if errs[0] != nil {
		return nil, errs[0]
	}
	var out []traits
	for i := range all {
		if errs[i] == nil {
			out = append(out, all[i])
		}
	}
	return out, nil
}

func readTraits(ctx context.Context, c *client.Client, m *bangerv1.VM) (traits, error) {
	name := m.GetSpec().GetName()
	ctx, cancel := context.WithTimeout(ctx, traitsTimeout)
	defer cancel()
	where, err := message(c.VMs.Endpoint(ctx, connect.NewRequest(&bangerv1.EndpointRequest{Ref: m.GetId()})))
	if err != nil {
		return traits{}, err
	}
	var out, said bytes.Buffer
	sup := vmclient.New(where.GetSocket())
	defer sup.Close()
	start := &bangerv1.ExecStart{Argv: []string{"sh", "-c", traitsScript}, User: "root", Workdir: "/"}
	code, err := sup.Exec(ctx, vmclient.Exec{Start: start, Stdout: &out, Stderr: &said})
	if err != nil {
		return traits{}, fault.Context(err, "ask vm %s who it is", name)
	}
	t, ok := parseTraits(name, out.String(), time.Now())
	if !ok {
		return traits{}, fault.New(fault.Unavailable, "vm %s does not say who it is (exit code %d): %s", name, code, strings.TrimSpace(said.String())).
			WithHint("banger exec %s -- cat /etc/machine-id", name)
	}
	return t, nil
}

func parseTraits(name, text string, now time.Time) (traits, bool) {
	lines := strings.Split(text, "\n")
	if len(lines) < 6 {
		return traits{}, false
	}
	t := traits{name: name, machineID: lines[0], bootID: lines[1], hostname: lines[2], mac: lines[3], random: lines[4]}
	if len(lines) > 6 {
		t.linkLocal = lines[6]
	}
	seconds, err := strconv.ParseInt(lines[5], 10, 64)
	if err != nil {
		return traits{}, false
	}
	t.offset = time.Unix(seconds, 0).Sub(now)
	return t, t.bootID != "" && t.hostname != ""
}

// compare checks that what a guest has for itself is its own.
func compare(t traits, others []traits) []preflight.Result {
	var checks []preflight.Result
	for _, what := range []struct {
		id  string
		get func(traits) string
	}{
		{"machine-id", func(t traits) string { return t.machineID }},
		{"boot-id", func(t traits) string { return t.bootID }},
		{"hostname", func(t traits) string { return t.hostname }},
		{"mac-address", func(t traits) string { return t.mac }},
		{"link-local", func(t traits) string { return t.linkLocal }},
		{"random-numbers", func(t traits) string { return t.random }},
	} {
		checks = append(checks, distinct(what.id, what.get(t), others, what.get))
	}
	clock := preflight.Result{ID: "clock", Title: "clock", Status: preflight.OK, Detail: "right"}
	if t.offset.Abs() > clockSlack {
		clock.Status, clock.Detail = preflight.Fail, fmt.Sprintf("%s off the host's", t.offset.Round(time.Second))
		clock.Hint = "banger vm restart " + t.name
	}
	return append(checks, clock)
}

// distinct checks that no other guest has the same value.
func distinct(id, value string, others []traits, get func(traits) string) preflight.Result {
	r := preflight.Result{ID: id, Title: id, Status: preflight.OK, Detail: value}
	switch {
	case value == "":
		r.Detail = "none"
		return r
	case id == "random-numbers":
		r.Detail = "its own"
	}
	for _, o := range others {
		if get(o) == value {
			r.Status, r.Detail, r.Hint = preflight.Fail, value+" is that of vm "+o.name+", too", "banger vm restart --cold "+o.name
			return r
		}
	}
	return r
}
