package cli

import (
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// specFlags are the flags that say what a new VM is like.
type specFlags struct {
	name, image, kernel string
	memory, disk        string
	user, workdir       string
	cpus                int
	env                 []string
	policy              policyFlags
}

func (f *specFlags) add(cmd *cobra.Command, d *Deps) {
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "name of the vm (default: one is made up)")
	flags.StringVar(&f.image, "image", "", "image of its root file system: a name or a reference (see banger image pull --help; default: the configured one)")
	flags.StringVar(&f.kernel, "kernel", "", "kernel that it boots (see banger kernel catalog; default: the one that the image names)")
	flags.IntVar(&f.cpus, "cpus", 0, "number of virtual CPUs (default: the configured one)")
	flags.StringVar(&f.memory, "memory", "", "memory, such as 512M or 2G (default: the configured one)")
	flags.StringVar(&f.disk, "disk", "", "size of its disk, such as 10G (default: the configured one)")
	flags.StringVar(&f.user, "user", "", "user that commands run as (default: the image's, or root)")
	flags.StringVar(&f.workdir, "workdir", "", "directory that commands start in (default: the image's, or the user's home)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment of commands: NAME=VALUE, or NAME to pass the host's value on")
	f.policy.add(cmd, "label to find it by: KEY=VALUE; may be given several times", cobra.NoFileCompletions)
	complete(cmd, "image", completeImages(d))
	complete(cmd, "kernel", completeKernels(d))
	for _, flag := range []string{"name", "cpus", "memory", "disk", "user", "workdir", "env"} {
		complete(cmd, flag, cobra.NoFileCompletions)
	}
}

// spec checks the flags and returns what they ask for. Whatever can be refused without the daemon is refused here.
func (f *specFlags) spec(cmd *cobra.Command, d *Deps) (*bangerv1.VMSpec, error) {
	given := cmd.Flags().Changed
	s := &bangerv1.VMSpec{Name: f.name, Image: f.image, Kernel: f.kernel, User: f.user, Workdir: f.workdir}
	// What is not given is checked as if it were fine: the daemon's defaults are its own matter.
	check := vm.Spec{CPUs: 1, Memory: vm.MinMemory, Disk: vm.MinDisk}
	var err error
	if given("name") {
		if _, err := vm.ParseName(f.name); err != nil {
			return nil, err
		}
	}
	if given("image") && f.image == "" {
		return nil, fault.New(fault.Invalid, "the name of the image is empty").WithHint("banger image catalog")
	}
	if given("kernel") && f.kernel == "" {
		return nil, fault.New(fault.Invalid, "the name of the kernel is empty").WithHint("banger kernel catalog")
	}
	if s.Image, err = hostReference(f.image); err != nil {
		return nil, err
	}
	if given("cpus") {
		check.CPUs, s.Cpus = f.cpus, uint32(max(f.cpus, 0)) //nolint:gosec // checked below
	}
	if given("memory") {
		if s.MemoryBytes, err = vm.ParseSize(f.memory); err != nil {
			return nil, err
		}
		check.Memory = s.MemoryBytes
	}
	if given("disk") {
		if s.DiskBytes, err = vm.ParseSize(f.disk); err != nil {
			return nil, err
		}
		check.Disk = s.DiskBytes
	}
	if s.Env, err = expandEnv(f.env, d.LookupEnv); err != nil {
		return nil, err
	}
	if err := checkWorkdir(f.workdir); err != nil {
		return nil, err
	}
	labels, err := f.policy.parse(cmd, false)
	if err != nil {
		return nil, err
	}
	s.Labels, s.Description, s.Restart, s.AutoStopMs = labels.set, f.policy.description, f.policy.restart, f.policy.autoStop.Milliseconds()
	s.NoFork = f.policy.noFork
	if given("auto-stop") && f.policy.autoStop == 0 { // never, whatever the configuration says
		s.AutoStopMs = -1
	}
	check.Env, check.Labels = s.Env, s.Labels
	return s, check.Validate()
}

func checkWorkdir(dir string) error {
	if dir != "" && !path.IsAbs(dir) {
		return fault.New(fault.Invalid, "working directory %q is not an absolute path", dir)
	}
	return nil
}

// expandEnv gives every NAME without a value the one that it has on the host.
func expandEnv(env []string, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	for _, kv := range env {
		name, _, hasValue := strings.Cut(kv, "=")
		if name == "" {
			return nil, fault.New(fault.Invalid, "environment %q is not NAME=VALUE or NAME", kv)
		}
		if !hasValue {
			value, ok := lookup(name)
			if !ok {
				return nil, fault.New(fault.Invalid, "environment variable %s has no value on the host to pass on", name).
					WithHint("export %s=...", name)
			}
			kv = name + "=" + value
		}
		out = append(out, kv)
	}
	return slices.Clip(out), nil
}
