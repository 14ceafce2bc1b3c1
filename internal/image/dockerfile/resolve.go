package dockerfile

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"banger/internal/image/source"
)

// defaultPath is what an image has that sets no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxTriggers bounds the ONBUILD instructions of one image.
const maxTriggers = 200

// Resolve expands the stage on top of an image with that configuration, which is not changed.
func (s *Stage) Resolve(image source.Config) (*Resolved, error) {
	if s.command != nil {
		return newResolver(s, commandConfig(image), &vars{}).resolveCommand(), nil
	}
	return newResolver(s, image, &vars{}).resolve(image.OnBuild)
}

// ResolveOn expands the stage on top of its Base, whose ARGs it knows too.
func (s *Stage) ResolveOn(below *Resolved) (*Resolved, error) {
	return newResolver(s, below.Config, below.scope).resolve(below.Config.OnBuild)
}

func (r *resolver) resolve(triggers []string) (*Resolved, error) {
	for _, text := range triggers {
		if err := r.trigger(text); err != nil {
			return nil, err
		}
	}
	for _, n := range r.stage.nodes {
		if err := r.node(n); err != nil {
			return nil, err
		}
	}
	r.cfg.Env = r.env.list
	return &Resolved{Steps: r.steps, Config: r.cfg, Warnings: r.warnings, Total: r.total, scope: r.scope}, nil
}

// resolver goes through the instructions of one stage.
type resolver struct {
	stage     *Stage
	plan      *Plan
	cfg       source.Config
	env       *vars // of the image: ENV
	scope     *vars // what expansion sees: ENV and ARG, the later one wins
	steps     []Step
	warnings  []Warning
	total     int
	cmdSet    bool // this stage has a CMD
	isTrigger bool // the instruction is a trigger
}

// newResolver begins a stage on an image of that configuration; scope are the variables of the stage below, if there is one.
func newResolver(s *Stage, base source.Config, scope *vars) *resolver {
	cfg := base
	cfg.OnBuild, cfg.Env = nil, nil
	cfg.Labels = maps.Clone(base.Labels)
	cfg.ExposedPorts = slices.Clone(base.ExposedPorts)
	r := &resolver{stage: s, plan: s.plan, cfg: cfg, env: &vars{}, scope: scope.clone(), total: s.Steps + len(base.OnBuild)}
	for _, kv := range base.Env {
		name, value, _ := strings.Cut(kv, "=")
		r.env.put(name, value)
	}
	if _, ok := r.env.get("PATH"); !ok {
		r.env.put("PATH", defaultPath)
	}
	for _, kv := range r.env.list {
		name, value, _ := strings.Cut(kv, "=")
		r.scope.put(name, value)
	}
	return r
}

// trigger carries out an ONBUILD instruction of the base image, as if it were the first of the stage.
func (r *resolver) trigger(text string) error {
	fail := func(err error) error {
		return r.plan.fail(r.stage.Line, r.stage.text, "ONBUILD %s, of the image below: %s", oneLine(text, maxShown/2), plain(err))
	}
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return fail(err)
	}
	if len(parsed.AST.Children) != 1 || len(r.steps) > maxTriggers {
		return fail(errors.New("is not one instruction"))
	}
	n := parsed.AST.Children[0]
	n.StartLine = r.stage.Line
	cmd, err := instructions.ParseCommand(n)
	if err != nil {
		return fail(err)
	}
	if err := r.stage.checkCommand(cmd); err != nil {
		return fail(err)
	}
	if !makesStep(n) {
		r.total--
	}
	r.isTrigger = true
	defer func() { r.isTrigger = false }()
	if err := r.do(cmd, n); err != nil {
		return fail(err)
	}
	return nil
}

func (r *resolver) node(n *parser.Node) error {
	cmd, err := r.plan.instruction(n)
	if err != nil {
		return err
	}
	if err := r.do(cmd, n); err != nil {
		return r.plan.failAt(n, "%s", plain(err))
	}
	return nil
}

// do expands one instruction and carries it out.
func (r *resolver) do(cmd any, n *parser.Node) error {
	if ex, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		// ARG and EXPOSE have rules of their own.
		if _, isArg := cmd.(*instructions.ArgCommand); !isArg {
			if err := ex.Expand(func(word string) (string, error) { return r.plan.expand(word, r.scope) }); err != nil {
				return err
			}
		}
	}
	if ex, ok := cmd.(instructions.SupportsSingleWordExpansionRaw); ok {
		if err := ex.ExpandRaw(func(word string) (string, error) { return expandRaw(word, r.scope) }); err != nil {
			return err
		}
	}
	switch c := cmd.(type) {
	case *instructions.RunCommand:
		return r.run(c, n)
	case *instructions.CopyCommand:
		return r.copy(c, n)
	case *instructions.AddCommand:
		return r.add(c, n)
	case *instructions.WorkdirCommand:
		return r.workdir(c, n)
	}
	return r.configure(cmd, n)
}

// configure carries out what changes the configuration only.
func (r *resolver) configure(cmd any, n *parser.Node) error {
	switch c := cmd.(type) {
	case *instructions.ArgCommand:
		return r.arg(c)
	case *instructions.EnvCommand:
		return r.setEnv(c)
	case *instructions.LabelCommand:
		return r.label(c)
	case *instructions.UserCommand:
		if c.User == "" || strings.ContainsFunc(c.User, notInName) {
			return fmt.Errorf("%q is not a user", c.User)
		}
		r.cfg.User = c.User
	case *instructions.CmdCommand:
		r.cfg.Cmd, r.cmdSet = r.command(c.ShellDependantCmdLine), true
	case *instructions.EntrypointCommand:
		r.cfg.Entrypoint = r.command(c.ShellDependantCmdLine)
		if !r.cmdSet {
			r.cfg.Cmd = nil
		}
	case *instructions.ShellCommand:
		r.cfg.RunShell = slices.Clone(c.Shell)
	case *instructions.ExposeCommand:
		return r.expose(c)
	case *instructions.StopSignalCommand:
		if err := checkSignal(c.Signal); err != nil {
			return err
		}
		r.cfg.StopSignal = c.Signal
	case *instructions.OnbuildCommand:
		r.cfg.OnBuild = append(r.cfg.OnBuild, c.Expression)
	default:
		return r.ignored(cmd, n)
	}
	return nil
}

// ignored are instructions that banger reads and does not act on.
func (r *resolver) ignored(cmd any, n *parser.Node) error {
	switch c := cmd.(type) {
	case *instructions.VolumeCommand:
		r.warn(n, "VOLUME %s makes no disk of its own: what is written there is on the disk of the VM", oneLine(strings.Join(c.Volumes, " "), 60))
	case *instructions.HealthCheckCommand:
		r.warn(n, "HEALTHCHECK is ignored: banger does not check what runs in a VM")
	case *instructions.MaintainerCommand:
		r.warn(n, "MAINTAINER is ignored: use LABEL maintainer=...")
	default:
		return fmt.Errorf("%s is not supported", strings.ToUpper(n.Value))
	}
	return nil
}

func (r *resolver) warn(n *parser.Node, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{n.StartLine, fmt.Sprintf(format, args...)})
}

// arg gives a variable that only this stage sees its value: that of the command line, else its own, else that of the ARG
// of the same name above the first FROM.
func (r *resolver) arg(c *instructions.ArgCommand) error {
	for _, a := range c.Args {
		value, ok := r.plan.buildArgs[a.Key]
		if !ok && a.Value != nil {
			var err error
			if value, err = r.plan.expand(*a.Value, r.scope); err != nil {
				return err
			}
			ok = true
		} else if !ok {
			value, ok = r.plan.global.get(a.Key)
		}
		if !ok {
			continue
		}
		if err := r.scope.set(a.Key, value); err != nil {
			return err
		}
	}
	return nil
}

func (r *resolver) setEnv(c *instructions.EnvCommand) error {
	for _, kv := range c.Env {
		if kv.Key == "" {
			return errors.New("the name of a variable is empty")
		}
		if err := r.env.set(kv.Key, kv.Value); err != nil {
			return err
		}
		if err := r.scope.set(kv.Key, kv.Value); err != nil {
			return err
		}
	}
	return nil
}

func (r *resolver) label(c *instructions.LabelCommand) error {
	if r.cfg.Labels == nil {
		r.cfg.Labels = map[string]string{}
	}
	for _, kv := range c.Labels {
		r.cfg.Labels[kv.Key] = kv.Value
	}
	size := 0
	for name, value := range r.cfg.Labels {
		size += len(name) + len(value)
	}
	if size > maxVars {
		return fmt.Errorf("the labels together are longer than %d bytes", maxVars)
	}
	return nil
}

// command is the command line of CMD and ENTRYPOINT.
func (r *resolver) command(line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return slices.Clone(line.CmdLine)
	}
	return append(r.shell(), strings.Join(line.CmdLine, " "))
}

func (r *resolver) shell() []string {
	if len(r.cfg.RunShell) > 0 {
		return slices.Clone(r.cfg.RunShell)
	}
	return []string{"/bin/sh", "-c"}
}

// dir is where relative paths begin.
func (r *resolver) dir() string { return path.Join("/", r.cfg.Workdir) }

func (r *resolver) workdir(c *instructions.WorkdirCommand, n *parser.Node) error {
	if strings.ContainsRune(c.Path, 0) {
		return errors.New("the path has a NUL in it")
	}
	dir := c.Path
	if !path.IsAbs(dir) {
		dir = path.Join(r.dir(), dir)
	}
	r.cfg.Workdir = path.Clean(dir)
	r.step(n, Step{Make: true})
	return nil
}

// step adds a step in the state that the stage has now.
func (r *resolver) step(n *parser.Node, s Step) {
	s.Line, s.Trigger, s.User, s.Workdir = n.StartLine, r.isTrigger, r.cfg.User, r.dir()
	s.Text = oneLine(n.Original, maxShown)
	title := n.Original
	if len(title) > 4<<10 {
		title = title[:4<<10]
	}
	word, rest, _ := strings.Cut(r.plan.display(title, r.scope), " ")
	s.Title = oneLine(strings.ToUpper(word)+" "+rest, 2*maxShown)
	r.steps = append(r.steps, s)
}

func (r *resolver) run(c *instructions.RunCommand, n *parser.Node) error {
	run, note, err := r.runCommand(c)
	if err != nil {
		return err
	}
	run.Env = slices.Clone(r.scope.list)
	run.Proxy = r.proxies()
	r.step(n, Step{Run: run})
	if note != "" {
		last := &r.steps[len(r.steps)-1]
		last.Title = oneLine(last.Title+" ("+note+")", 2*maxShown)
	}
	return nil
}

// proxies are the proxy settings among the build arguments, in both spellings that programs look for.
func (r *resolver) proxies() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(r.plan.buildArgs)) {
		if !isProxy(name) {
			continue
		}
		value := r.plan.buildArgs[name]
		if strings.ContainsRune(value, 0) || len(value) > maxValue {
			continue
		}
		for _, spelled := range []string{strings.ToUpper(name), strings.ToLower(name)} {
			if _, set := r.scope.get(spelled); !set {
				out = append(out, spelled+"="+value)
			}
		}
	}
	return out
}

func notInName(c rune) bool { return c <= ' ' || c == 0x7f }

// isDefault reports whether a flag says what is so without it.
func isDefault(value, usual string) bool { return cmp.Or(value, usual) == usual }
