package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

const templateLong = `VMs are started from templates: machines that were booted once and saved while they waited to be told which VM they
are. A template is made at the first start of its kind (kernel, number of CPUs, size of memory), kept on the disk and shared
by every VM that is started from it. Whatever is wrong with one, the VM is booted instead and the template made anew.`

// newTemplate is the group of the commands about templates.
func newTemplate(d *Deps) *cobra.Command {
	cmd := group("template", "Saved machines that vms are started from", templateLong)
	cmd.Example = "  banger template list\n  banger template warm --cpus 2 --memory 1G"
	cmd.AddCommand(newTemplateList(d), newTemplateRemove(d), newTemplatePrune(d), newTemplateWarm(d))
	return cmd
}

// started says what was wrong with the template of a VM that was started.
func (d *Deps) started(m *bangerv1.VM, err error) (*bangerv1.VM, error) {
	if err == nil {
		d.noteTemplate(m)
	}
	return m, err
}

func (d *Deps) noteTemplate(m *bangerv1.VM) {
	why := m.GetTemplateFault()
	switch name := m.GetSpec().GetName(); {
	case why == "":
	case m.GetFromTemplate() != "":
		d.Term.Note("vm %s: %s", name, why)
	default:
		d.Term.Note("vm %s was booted, not started from a template: %s", name, why)
	}
}

type templateView struct {
	Key           string     `json:"key"`
	VMM           string     `json:"vmm,omitempty"`
	CPUs          int32      `json:"cpus,omitempty"`
	MemoryBytes   uint64     `json:"memory_bytes,omitempty"`
	Kernel        string     `json:"kernel_version,omitempty"`
	UsedBytes     uint64     `json:"used_bytes"`
	CreatedAt     *time.Time `json:"created_at,omitempty"`
	LastUsedAt    *time.Time `json:"last_used_at,omitempty"`
	UsedBy        []string   `json:"used_by"`
	Problem       string     `json:"problem,omitempty"`
	Image         string     `json:"image,omitempty"`
	Failures      int32      `json:"failures,omitempty"`
	LastFailure   string     `json:"last_failure,omitempty"`
	LastFailureAt *time.Time `json:"last_failure_at,omitempty"`
	Off           bool       `json:"off"`
}

func viewTemplate(t *bangerv1.Template) templateView {
	return templateView{
		Key: t.GetKey(), VMM: t.GetVmm(), CPUs: t.GetCpus(), MemoryBytes: t.GetMemoryBytes(), Kernel: t.GetKernel(), UsedBytes: t.GetUsedBytes(),
		CreatedAt: at(t.GetCreatedAtMs()), LastUsedAt: at(t.GetLastUsedMs()), UsedBy: append([]string{}, t.GetUsedBy()...), Problem: t.GetProblem(), Image: t.GetImage(),
		Failures: t.GetFailures(), LastFailure: t.GetLastFailure(), LastFailureAt: at(t.GetLastFailureMs()), Off: t.GetOff(),
	}
}

func newTemplateList(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List templates",
		Long: `List the templates of this host, the one that was used last first, and what is known of those that could not be made.
After three failures in a row VMs of that kind are booted until "banger template rm" forgets them.`,
		Example: "  banger template list\n  banger template list --format json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runTemplateList(cmd.Context(), d) },
	}
}

func runTemplateList(ctx context.Context, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Templates.List(ctx, connect.NewRequest(&bangerv1.ListTemplatesRequest{})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(views(resp.GetTemplates(), viewTemplate))
	}
	if err := d.Term.Table(templateTable(resp.GetTemplates(), time.Now())); err != nil {
		return err
	}
	if resp.GetOff() {
		d.Term.Note("templates are switched off: every vm boots")
		d.Term.Hint("banger config set vmm.templates on")
	}
	return nil
}

func templateTable(all []*bangerv1.Template, now time.Time) term.Table {
	table := term.Table{Columns: []term.Column{
		{Title: "KEY", Fixed: true}, {Title: "VMM", Fixed: true, Rank: 2}, {Title: "CPUS", Right: true, Fixed: true}, {Title: "MEMORY", Right: true, Fixed: true},
		{Title: "KERNEL", Rank: 1}, {Title: "IMAGE"}, {Title: "SIZE", Right: true, Fixed: true}, {Title: "LAST USED", Fixed: true}, {Title: "IN USE BY"}, {Title: "STATE"},
	}}
	for _, t := range all {
		row := []string{t.GetKey(), orDash(t.GetVmm()), "-", "-", orDash(t.GetKernel()), orDash(t.GetImage()), vm.FormatSize(t.GetUsedBytes()), "-", orDash(strings.Join(t.GetUsedBy(), ", ")), templateState(t)}
		if t.GetVmm() != "" {
			row[2], row[3] = strconv.Itoa(int(t.GetCpus())), vm.FormatSize(t.GetMemoryBytes())
		}
		if t.GetLastUsedMs() > 0 {
			row[7] = age(max(now.Sub(time.UnixMilli(t.GetLastUsedMs())), 0)) + " ago"
		}
		table.Rows = append(table.Rows, row)
	}
	return table
}

// templateState is what is wrong with a template, in a few words.
func templateState(t *bangerv1.Template) string {
	switch {
	case t.GetOff():
		return "off after " + strconv.Itoa(int(t.GetFailures())) + " failures: " + t.GetLastFailure()
	case t.GetProblem() != "":
		return t.GetProblem()
	case t.GetFailures() > 0:
		return "failed " + strconv.Itoa(int(t.GetFailures())) + " times: " + t.GetLastFailure()
	}
	return "ok"
}

func newTemplateRemove(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "rm KEY...", Short: "Remove templates",
		Long: `Remove templates and forget their failures, so that they are made anew at the next start of their kind. VMs that were
started from them go on. The beginning of a key is enough.`,
		Example: "  banger template rm 0123456789ab\n  banger template list",
		Args:    someTemplates,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runTemplateRemove(cmd.Context(), unique(args), d)
		},
		ValidArgsFunction: completeTemplates(d),
	}
}

func someTemplates(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fault.New(fault.Invalid, "%s needs the key of a template", cmd.CommandPath()).WithHint("banger template list")
	}
	return noEmpty(cmd, args)
}

// removedView is one removed template in JSON.
type removedView struct {
	Key        string `json:"key"`
	FreedBytes uint64 `json:"freed_bytes"`
}

func runTemplateRemove(ctx context.Context, refs []string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	gone := []removedView{}
	var failures []error
	for _, ref := range refs {
		resp, err := message(c.Templates.Remove(ctx, connect.NewRequest(&bangerv1.RemoveTemplateRequest{Ref: ref})))
		if err != nil {
			failures = append(failures, err)
			continue
		}
		gone = append(gone, removedView{resp.GetKey(), resp.GetFreedBytes()})
		if !d.Term.JSON() {
			if err := d.Term.Answer("%s", resp.GetKey()); err != nil {
				return err
			}
		}
	}
	if d.Term.JSON() {
		if err := d.Term.WriteJSON(gone); err != nil {
			return err
		}
	}
	return d.several(failures)
}

type templatePruneOptions struct{ all, yes bool }

func newTemplatePrune(d *Deps) *cobra.Command {
	var opts templatePruneOptions
	cmd := &cobra.Command{
		Use: "prune [flags]", Short: "Remove templates that nobody uses",
		Long: `Say which templates no running VM was started from and how much room they take, and remove them with --yes. They are
made again when they are needed. With --all also those in use: what VMs have in memory stays until they end.`,
		Example: "  banger template prune\n  banger template prune --yes\n  banger template prune --all --yes",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runTemplatePrune(cmd.Context(), opts, d) },
	}
	cmd.Flags().BoolVar(&opts.all, "all", false, "also templates that running vms were started from")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "remove them; without, it is only said what would go")
	return cmd
}

// templatePruneView is the JSON answer of prune.
type templatePruneView struct {
	Removed    bool          `json:"removed"`
	Templates  []removedView `json:"templates"`
	FreedBytes uint64        `json:"freed_bytes"`
}

func runTemplatePrune(ctx context.Context, opts templatePruneOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Templates.Prune(ctx, connect.NewRequest(&bangerv1.PruneTemplatesRequest{DryRun: !opts.yes, All: opts.all})))
	if err != nil {
		return err
	}
	gone := views(resp.GetPruned(), func(p *bangerv1.Pruned) removedView { return removedView{p.GetName(), p.GetBytes()} })
	if d.Term.JSON() {
		return d.Term.WriteJSON(templatePruneView{opts.yes, gone, resp.GetFreedBytes()})
	}
	table := term.Table{Columns: []term.Column{{Title: "KEY", Fixed: true}, {Title: "SIZE", Right: true, Fixed: true}}}
	for _, g := range gone {
		table.Rows = append(table.Rows, []string{g.Key, vm.FormatSize(g.FreedBytes)})
	}
	if err := d.Term.Table(table); err != nil || len(gone) == 0 {
		return err
	}
	if opts.yes {
		d.Term.Note("%s is free again", vm.FormatSize(resp.GetFreedBytes()))
		return nil
	}
	d.Term.Note("%s would be free again", vm.FormatSize(resp.GetFreedBytes()))
	d.Term.Hint("banger template prune%s --yes", map[bool]string{true: " --all"}[opts.all])
	return nil
}

type warmOptions struct {
	cpus           int
	memory, kernel string
}

func newTemplateWarm(d *Deps) *cobra.Command {
	var opts warmOptions
	cmd := &cobra.Command{
		Use: "warm [flags]", Short: "Make a template ahead of its first use",
		Long: `Make the template of VMs with a kernel, so many CPUs and so much memory, unless it is there, and wait until it is. The
answer is its key. What is not given is the configured default. A kernel that is not there yet is pulled.`,
		Example: "  banger template warm\n  banger template warm --cpus 4 --memory 4G",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := opts.request(cmd)
			if err != nil {
				return err
			}
			return runTemplateWarm(cmd.Context(), req, d)
		},
	}
	cmd.Flags().IntVar(&opts.cpus, "cpus", 0, "number of virtual CPUs (default: the configured one)")
	cmd.Flags().StringVar(&opts.memory, "memory", "", "memory, such as 512M or 2G (default: the configured one)")
	cmd.Flags().StringVar(&opts.kernel, "kernel", "", "kernel (default: that of the configured image)")
	complete(cmd, "kernel", completeKernels(d))
	for _, flag := range []string{"cpus", "memory"} {
		complete(cmd, flag, cobra.NoFileCompletions)
	}
	return cmd
}

// request checks the flags.
func (o *warmOptions) request(cmd *cobra.Command) (*bangerv1.WarmTemplateRequest, error) {
	req := &bangerv1.WarmTemplateRequest{Kernel: o.kernel}
	check := vm.Spec{CPUs: 1, Memory: vm.MinMemory, Disk: vm.MinDisk}
	if cmd.Flags().Changed("cpus") {
		check.CPUs, req.Cpus = o.cpus, uint32(max(o.cpus, 0)) //nolint:gosec // checked below
	}
	if cmd.Flags().Changed("memory") {
		n, err := vm.ParseSize(o.memory)
		if err != nil {
			return nil, err
		}
		check.Memory, req.MemoryBytes = n, n
	}
	return req, check.Validate()
}

func runTemplateWarm(ctx context.Context, req *bangerv1.WarmTemplateRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := d.warm(ctx, c, req)
	if err != nil {
		return err
	}
	if !d.Term.JSON() {
		return d.Term.Answer("%s", op.GetResultId())
	}
	resp, err := message(c.Templates.List(ctx, connect.NewRequest(&bangerv1.ListTemplatesRequest{})))
	if err != nil {
		return err
	}
	for _, t := range resp.GetTemplates() {
		if t.GetKey() == op.GetResultId() {
			return d.Term.WriteJSON(viewTemplate(t))
		}
	}
	return fault.New(fault.NotFound, "template %s is gone again", op.GetResultId())
}

// warm begins the operation and follows it to its end. Only the latter is cut off by an interrupt.
func (d *Deps) warm(ctx context.Context, c *client.Client, req *bangerv1.WarmTemplateRequest) (*bangerv1.Operation, error) {
	callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	begun, err := message(c.Templates.Warm(callCtx, connect.NewRequest(req)))
	if err != nil {
		return nil, err
	}
	return d.follow(ctx, c, begun.GetOperationId())
}
