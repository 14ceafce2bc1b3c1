package cli

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/vm"
)

// policyFlags are the flags that say how a VM is kept and found: create, run and set have them.
type policyFlags struct {
	labels               []string
	description, restart string
	noFork               string
	autoStop             time.Duration
}

func (f *policyFlags) add(cmd *cobra.Command, labelHelp string, labels cobra.CompletionFunc) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.labels, "label", "l", nil, labelHelp)
	flags.StringVar(&f.description, "description", "", "what it is for, in a line")
	flags.StringVar(&f.restart, "restart", "", "when it ends by itself: no, on-failure, or always (also when the host has booted)")
	flags.StringVar(&f.noFork, "no-fork", "", "refuse to fork it, for this reason, such as secrets; \"\": allow it")
	flags.DurationVar(&f.autoStop, "auto-stop", 0, "stop it when nobody has used it for so long, such as 30m; 0: never")
	complete(cmd, "label", labels)
	complete(cmd, "restart", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return restartPolicies(), cobra.ShellCompDirectiveNoFileComp
	})
	complete(cmd, "description", cobra.NoFileCompletions)
	complete(cmd, "no-fork", cobra.NoFileCompletions)
	complete(cmd, "auto-stop", cobra.NoFileCompletions)
}

func restartPolicies() []string {
	return []string{string(vm.RestartNo), string(vm.RestartOnFailure), string(vm.RestartAlways)}
}

// labelChange is what label flags ask for.
type labelChange struct {
	set    map[string]string
	remove []string
}

// parse checks the flags. With change, labels may be removed too.
func (f *policyFlags) parse(cmd *cobra.Command, change bool) (labelChange, error) {
	if cmd.Flags().Changed("restart") && !slices.Contains(restartPolicies(), f.restart) {
		return labelChange{}, fault.New(fault.Invalid, "unknown restart policy %q: one of %s", f.restart, strings.Join(restartPolicies(), ", ")).
			WithHint("%s --restart on-failure%s", cmd.CommandPath(), argument(change))
	}
	if f.autoStop < 0 || f.autoStop > 0 && f.autoStop < time.Millisecond {
		return labelChange{}, fault.New(fault.Invalid, "an idle time of %s is not possible", f.autoStop).
			WithHint("%s --auto-stop 30m%s", cmd.CommandPath(), argument(change))
	}
	if !utf8.ValidString(f.description) {
		return labelChange{}, fault.New(fault.Invalid, "the description is not text in UTF-8")
	}
	return parseLabels(cmd, f.labels, change)
}

// argument is what stands for the VM in a hint of a command that is about one.
func argument(wanted bool) string {
	if wanted {
		return " NAME"
	}
	return ""
}

func parseLabels(cmd *cobra.Command, labels []string, change bool) (out labelChange, err error) {
	refuse := func(format string, args ...any) (labelChange, error) {
		return labelChange{}, fault.New(fault.Invalid, format, args...).WithHint("%s --label team=web%s", cmd.CommandPath(), argument(change))
	}
	for _, label := range labels {
		key, value, hasValue := strings.Cut(label, "=")
		removed, remove := strings.CutSuffix(key, "-")
		if remove = remove && !hasValue; remove {
			key = removed
		}
		switch {
		case key == "" || !utf8.ValidString(label) || strings.ContainsAny(key, " \t\r\n"):
			return refuse("label %q has no name that can be used: KEY=VALUE, no spaces in KEY", label)
		case remove && !change:
			return refuse("label %q: a new vm has none to remove", label)
		case remove:
			out.remove = append(out.remove, key)
			continue
		case out.set == nil:
			out.set = make(map[string]string)
		}
		out.set[key] = value
	}
	for _, key := range out.remove {
		if _, both := out.set[key]; both {
			return refuse("label %q is both set and removed", key)
		}
	}
	return out, nil
}

// labelText is a VM's labels in a line, in order.
func labelText(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if value := labels[key]; value != "" {
			key += "=" + value
		}
		parts = append(parts, key)
	}
	return strings.Join(parts, ",")
}
