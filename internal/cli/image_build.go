package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// longestScript is the size of the longest script that is sent to the daemon.
const longestScript = 1 << 20

type buildOptions struct {
	tags      []string
	file      string
	args      []string
	labels    []string
	target    string
	platform  string
	from      string
	script    string
	progress  string
	memory    string
	disk      string
	cpus      int
	noCache   bool
	pull      bool
	quiet     bool
	directory string   // the context
	argv      []string // behind "--"
}

func newImageBuild(d *Deps) *cobra.Command {
	var opts buildOptions
	cmd := &cobra.Command{
		Use: "build [flags] DIR | build --from IMAGE [flags] [-- COMMAND [ARG...]]", Short: "Make an image from a Dockerfile, a script or a command",
		Long: `Make an image, in one of two ways:

  build DIR                       follows the Dockerfile in DIR, whose files it may copy (but for what .dockerignore names).
                                  Each RUN is executed in a VM of its own. Steps that were done before are taken from a cache.
  build --from IMAGE --script F   runs a script, or the command behind --, as root in a VM of IMAGE, and keeps what it changed.
                                  A script without #! is one for sh; F may be - for stdin.

The answer is the image's name, or its digest if it gets none.`,
		Example: `  banger image build -t app .
  banger image build -t app -f docker/Dockerfile --build-arg VERSION=1.2 --target test .
  banger image build --from debian-bookworm -t tools --script setup.sh
  banger image build --from debian-bookworm -t tools -- apt-get install -y gcc`,
		Args: func(cmd *cobra.Command, args []string) error { return opts.place(cmd, args) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := opts.request(cmd, d)
			if err != nil {
				return err
			}
			return runImageBuild(cmd.Context(), req, opts, d)
		},
		ValidArgsFunction: firstOnly(completeDirs),
	}
	opts.addFlags(cmd, d)
	return cmd
}

func (o *buildOptions) addFlags(cmd *cobra.Command, d *Deps) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&o.tags, "tag", "t", nil, "what to call the image; may be given several times")
	flags.StringVarP(&o.file, "file", "f", "", "the Dockerfile (default: DIR/Dockerfile)")
	flags.StringArrayVar(&o.args, "build-arg", nil, "value of an ARG: NAME=VALUE, or NAME to pass the host's value on")
	flags.StringVar(&o.target, "target", "", "the stage to make (default: the last one)")
	flags.BoolVar(&o.noCache, "no-cache", false, "do every step anew")
	flags.BoolVar(&o.pull, "pull", false, "look for newer base images")
	flags.StringVar(&o.platform, "platform", "", "of which platform, such as linux/amd64 (default: the host's)")
	flags.StringVar(&o.from, "from", "", "instead of a Dockerfile: the image to begin with")
	flags.StringVar(&o.script, "script", "", "file with the script to run in it; - for stdin")
	flags.StringArrayVar(&o.labels, "label", nil, "label of the image: NAME=VALUE; may be given several times")
	flags.IntVar(&o.cpus, "cpus", 0, "number of virtual CPUs of the vms that run steps")
	flags.StringVar(&o.memory, "memory", "", "their memory, such as 2G")
	flags.StringVar(&o.disk, "disk", "", "size of their disk, such as 20G")
	flags.StringVar(&o.progress, "progress", "auto", "how to show the steps: auto, plain or quiet")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "the same as --progress quiet")
	complete(cmd, "file", completeFiles)
	complete(cmd, "script", completeFiles)
	complete(cmd, "from", completeImages(d))
	complete(cmd, "platform", completePlatforms)
	complete(cmd, "progress", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return progressModes, cobra.ShellCompDirectiveNoFileComp
	})
	for _, flag := range []string{"tag", "build-arg", "target", "label", "cpus", "memory", "disk"} {
		complete(cmd, flag, cobra.NoFileCompletions)
	}
}

var progressModes = []string{string(term.ProgressAuto), string(term.ProgressPlain), string(term.ProgressQuiet)}

// place sorts the arguments: a directory before "--", a command behind it.
func (o *buildOptions) place(cmd *cobra.Command, args []string) error {
	before := args
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		before, o.argv = args[:dash], args[dash:]
	}
	switch {
	case len(before) > 1:
		return fault.New(fault.Invalid, "%s takes one directory, not %d", cmd.CommandPath(), len(before)).WithHint("%s --help", cmd.CommandPath())
	case o.from != "":
		return o.placeFrom(cmd, before)
	case o.script != "" || len(o.argv) > 0:
		return fault.New(fault.Invalid, "a script or a command needs an image to run in").
			WithHint("%s --from debian-bookworm %s", cmd.CommandPath(), o.whatRuns())
	case len(before) == 0 || before[0] == "":
		return fault.New(fault.Invalid, "%s needs the directory with the Dockerfile", cmd.CommandPath()).WithHint("%s .", cmd.CommandPath())
	}
	o.directory = before[0]
	return nil
}

// placeFrom checks a command line with --from.
func (o *buildOptions) placeFrom(cmd *cobra.Command, before []string) error {
	if len(before) > 0 {
		return fault.New(fault.Invalid, "argument %q: a build --from an image takes no directory; a command stands behind --", before[0]).
			WithHint("%s --from %s -- %s", cmd.CommandPath(), o.from, before[0])
	}
	if (o.script != "") == (len(o.argv) > 0) {
		return fault.New(fault.Invalid, "a build --from an image needs a script or a command, one of them").
			WithHint("%s --from %s --script setup.sh", cmd.CommandPath(), o.from)
	}
	for _, flag := range []string{"file", "build-arg", "target"} {
		if cmd.Flags().Changed(flag) {
			return fault.New(fault.Invalid, "--%s is for a Dockerfile, and --from is instead of one", flag).WithHint("%s --help", cmd.CommandPath())
		}
	}
	return nil
}

func (o *buildOptions) whatRuns() string {
	if o.script != "" {
		return "--script " + o.script
	}
	return "-- " + shellWords(o.argv)
}

// request checks the flags and what they name, and returns the call.
func (o *buildOptions) request(cmd *cobra.Command, d *Deps) (*bangerv1.BuildImageRequest, error) {
	if o.quiet {
		o.progress = string(term.ProgressQuiet)
	}
	if !slices.Contains(progressModes, o.progress) {
		return nil, fault.New(fault.Invalid, "--progress %q is not one of %s", o.progress, strings.Join(progressModes, ", ")).
			WithHint("%s --progress plain", cmd.CommandPath())
	}
	if err := checkPlatform(cmd, o.platform); err != nil {
		return nil, err
	}
	if slices.Contains(o.tags, "") {
		return nil, fault.New(fault.Invalid, "--tag is empty").WithHint("%s --help", cmd.CommandPath())
	}
	req := &bangerv1.BuildImageRequest{
		Target: o.target, NoCache: o.noCache, Pull: o.pull, Platform: o.platform, Argv: o.argv,
	}
	if len(o.tags) > 0 {
		req.Name = o.tags[0]
	}
	if err := o.machine(cmd, req); err != nil {
		return nil, err
	}
	var err error
	if req.BuildArgs, err = expandEnv(o.args, d.LookupEnv); err != nil {
		return nil, fault.Context(err, "--build-arg")
	}
	for _, label := range o.labels {
		if name, _, ok := strings.Cut(label, "="); !ok || name == "" {
			return nil, fault.New(fault.Invalid, "label %q is not NAME=VALUE", label).WithHint("%s --label version=1.2", cmd.CommandPath())
		}
	}
	req.Labels = o.labels
	if o.from == "" {
		return req, o.dockerfile(cmd, req)
	}
	if req.From, err = hostReference(o.from); err != nil {
		return nil, err
	}
	if o.script != "" {
		req.Script, err = d.readScript(cmd.Context(), o.script)
	}
	return req, err
}

// machine checks what the VMs of the steps are to be like.
func (o *buildOptions) machine(cmd *cobra.Command, req *bangerv1.BuildImageRequest) (err error) {
	check, given := vm.Spec{CPUs: 1, Memory: vm.MinMemory, Disk: vm.MinDisk}, cmd.Flags().Changed
	if given("cpus") {
		check.CPUs, req.Cpus = o.cpus, uint32(max(o.cpus, 0)) //nolint:gosec // checked below
	}
	if given("memory") {
		if req.MemoryBytes, err = vm.ParseSize(o.memory); err != nil {
			return err
		}
		check.Memory = req.GetMemoryBytes()
	}
	if given("disk") {
		if req.DiskBytes, err = vm.ParseSize(o.disk); err != nil {
			return err
		}
		check.Disk = req.GetDiskBytes()
	}
	return hintFor(check.Validate(), cmd.CommandPath(), ".")
}

// dockerfile looks for the context and the Dockerfile.
func (o *buildOptions) dockerfile(cmd *cobra.Command, req *bangerv1.BuildImageRequest) (err error) {
	if o.directory == "-" || o.file == "-" {
		return fault.New(fault.Invalid, "a build does not read stdin: it takes a directory").WithHint("%s -f Dockerfile .", cmd.CommandPath())
	}
	if strings.Contains(o.directory, "://") || strings.HasPrefix(o.directory, "git@") {
		return fault.New(fault.Invalid, "%q is not a directory: a build takes one of this host", o.directory).WithHint("git clone %s", o.directory)
	}
	if req.ContextDir, err = hostDir("the context", o.directory); err != nil {
		return err
	}
	if o.file != "" {
		req.Dockerfile, err = hostFile("--file", o.file)
		return err
	}
	_, err = os.Stat(filepath.Join(o.directory, "Dockerfile"))
	if !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	f := fault.New(fault.NotFound, "there is no Dockerfile in %q", o.directory)
	if other := filepath.Join(o.directory, "Containerfile"); isFile(other) {
		return f.WithHint("%s -f %s %s", cmd.CommandPath(), other, o.directory)
	}
	return f.WithHint("%s -f DOCKERFILE %s", cmd.CommandPath(), o.directory)
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// readScript returns the contents of a script, of stdin for "-". It ends with ctx.
func (d *Deps) readScript(ctx context.Context, path string) ([]byte, error) {
	var r io.ReadCloser
	if path == "-" {
		in, err := d.Term.Input()
		if err != nil {
			return nil, err
		}
		defer in.Close()
		defer context.AfterFunc(ctx, in.Stop)()
		r = io.NopCloser(in)
	} else {
		abs, err := hostFile("--script", path)
		if err != nil {
			return nil, err
		}
		if r, err = os.Open(abs); err != nil {
			return nil, missing("--script", path, err)
		}
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, longestScript+1))
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fault.Wrap(fault.Invalid, err, "--script")
	case len(data) == 0:
		return nil, fault.New(fault.Invalid, "--script: %q is empty", path)
	case len(data) > longestScript:
		return nil, fault.New(fault.Invalid, "--script: %q has more than %s", path, vm.FormatSize(longestScript))
	}
	return data, nil
}

func runImageBuild(ctx context.Context, req *bangerv1.BuildImageRequest, opts buildOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	id, err := begun(ctx, func(ctx context.Context) (string, error) {
		resp, err := message(c.Images.Build(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	op, err := d.followBuild(ctx, c, id, term.ProgressMode(opts.progress))
	if err != nil {
		return err
	}
	for _, name := range opts.tags[min(len(opts.tags), 1):] {
		if _, err := c.Images.Tag(ctx, connect.NewRequest(&bangerv1.TagImageRequest{Ref: op.GetResultId(), Name: name, Force: true})); err != nil {
			return fault.Context(err, "image %s is made, but not called %s", op.GetResultId(), name)
		}
	}
	return d.answerImage(ctx, c, op.GetResultId())
}

// followBuild is follow with the log of the build's steps. Of a quiet build the last lines of a step that failed are shown.
func (d *Deps) followBuild(ctx context.Context, c *client.Client, id string, mode term.ProgressMode) (*bangerv1.Operation, error) {
	show := d.Term.ProgressAs(mode)
	defer show.Close()
	log := newBuildLog(show)
	op, err := d.followOn(ctx, c, id, show, log.take)
	show.Close()
	if err == nil || mode != term.ProgressQuiet || interruptOf(ctx, err) != nil {
		return op, err
	}
	for _, line := range log.failures() {
		d.Term.Note("%s", line)
	}
	return op, err
}

// plural is "1 image", "2 images".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
