// Package dockerfile reads Dockerfiles and .dockerignore files.
//
// Parse takes a file apart with BuildKit's own parser and finds out which stages the target needs. Stage.Resolve then
// turns one stage into steps, once the configuration of the image below it is known: variables are expanded as docker
// does, triggers of the base image are put in front, and everything that only changes the configuration is done. What is
// left in the steps are the instructions that change files: RUN, COPY, ADD and WORKDIR. Nothing here touches a file, a
// network or a VM; package build does that.
//
// What is not supported is an error that names the line. It is found by Parse where the text alone shows it, and only in
// stages that the target needs.
package dockerfile

import (
	"bytes"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Scratch is the FROM of a stage that begins with nothing.
const Scratch = "scratch"

// Bounds of what is read: far beyond any file that somebody has written by hand.
const (
	maxFile         = 1 << 20
	maxInstructions = 5000
	maxStages       = 500
)

// Options are what the user says about a build.
type Options struct {
	BuildArgs     map[string]string // values of ARG instructions
	Target        string            // stage to build, by name or index; empty: the last
	Platform      string            // linux/amd64; empty: BuildPlatform
	BuildPlatform string            // where the build runs; empty: this host's
}

// Plan is a Dockerfile whose stages are known. It is not changed after Parse.
type Plan struct {
	Name     string   // of the file, for messages; empty: there is none
	Stages   []*Stage // as in the file
	Target   *Stage
	Platform string // of the target, normalised
	Warnings []Warning

	escape    rune
	global    *vars // ARGs before the first FROM, and the platforms
	buildArgs map[string]string
}

// Stage is one FROM and what follows it.
type Stage struct {
	Index    int
	Name     string // of AS, lower case; may be empty
	Label    string // how progress calls it: its name or "stage-1"; empty in a file with one stage
	From     string // image reference or Scratch; empty: Base is set
	Base     *Stage // the earlier stage that it begins with, or nil
	Platform string // of its image
	Line     int
	Steps    int // its instructions that change files, and one for FROM where that is an image

	plan  *Plan
	text  string // the FROM line
	nodes []*parser.Node

	command *Run // of Command, in the place of nodes
	title   string
}

// Warning is something about a Dockerfile that does not stop the build.
type Warning struct {
	Line int
	Text string
}

// Parse reads the Dockerfile called name. Every error is a fault that begins with the file's name and line.
func Parse(name string, data []byte, opt Options) (*Plan, error) {
	p := &Plan{Name: name, buildArgs: opt.BuildArgs}
	if len(data) > maxFile {
		return nil, p.fail(1, "", "the file has %d bytes, more than %d", len(data), maxFile)
	}
	target, build, err := platforms(opt)
	if err != nil {
		return nil, err
	}
	p.Platform = target
	parsed, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return nil, p.located(err, data)
	}
	p.escape = parsed.EscapeToken
	for _, w := range parsed.Warnings {
		p.warn(w.Location.Start.Line, "an empty line after a line continuation: remove it")
	}
	p.checkSyntax(data)
	if err := p.split(parsed.AST.Children, target, build); err != nil {
		return nil, err
	}
	if err := p.findTarget(opt.Target); err != nil {
		return nil, err
	}
	for _, s := range p.Needed() {
		if err := s.check(); err != nil {
			return nil, err
		}
	}
	p.checkArgs()
	return p, nil
}

// split divides the instructions into the ARGs of the whole file and the stages.
func (p *Plan) split(nodes []*parser.Node, target, build string) error {
	if len(nodes) > maxInstructions {
		return p.fail(nodes[maxInstructions].StartLine, "", "more than %d instructions", maxInstructions)
	}
	p.global = platformArgs(target, build, p.buildArgs)
	type begun struct {
		from *instructions.Stage
		node *parser.Node
	}
	var froms []begun
	var bodies [][]*parser.Node
	for _, n := range nodes {
		cmd, err := p.instruction(n)
		if err != nil {
			return err
		}
		switch c := cmd.(type) {
		case *instructions.Stage:
			froms = append(froms, begun{c, n})
			bodies = append(bodies, nil)
		case *instructions.ArgCommand:
			if len(froms) == 0 {
				if err := p.globalArg(c, n); err != nil {
					return err
				}
				continue
			}
			bodies[len(bodies)-1] = append(bodies[len(bodies)-1], n)
		default:
			if len(froms) == 0 {
				return p.failAt(n, "the first instruction is FROM (only ARG may come before it)")
			}
			bodies[len(bodies)-1] = append(bodies[len(bodies)-1], n)
		}
	}
	if len(froms) == 0 {
		return p.fail(nodes[0].StartLine, nodes[0].Original, "there is no FROM")
	}
	if len(froms) > maxStages {
		return p.failAt(froms[maxStages].node, "more than %d stages", maxStages)
	}
	for i, f := range froms {
		if err := p.addStage(f.from, f.node, bodies[i], len(froms)); err != nil {
			return err
		}
	}
	return nil
}

// instruction parses one node of the tree. The result is new each time, since expansion changes it.
func (p *Plan) instruction(n *parser.Node) (any, error) {
	if len(n.Original) > maxWord {
		return nil, p.failAt(n, "the instruction has %d bytes, more than %d", len(n.Original), maxWord)
	}
	cmd, err := instructions.ParseInstruction(n)
	if err != nil {
		return nil, p.failAt(n, "%s", plain(err))
	}
	return cmd, nil
}

// globalArg is an ARG before the first FROM, which FROM lines see, and stages that repeat it.
func (p *Plan) globalArg(c *instructions.ArgCommand, n *parser.Node) error {
	for _, arg := range c.Args {
		value, given := p.buildArgs[arg.Key]
		if !given {
			if arg.Value == nil {
				continue
			}
			var err error
			if value, err = p.expand(*arg.Value, p.global); err != nil {
				return p.failAt(n, "%s", plain(err))
			}
		}
		if err := p.global.set(arg.Key, value); err != nil {
			return p.failAt(n, "%s", plain(err))
		}
	}
	return nil
}

// addStage resolves what a FROM line names: an earlier stage, nothing, or an image.
func (p *Plan) addStage(from *instructions.Stage, n *parser.Node, body []*parser.Node, stages int) error {
	s := &Stage{Index: len(p.Stages), Name: from.Name, Label: from.Name, Line: n.StartLine, plan: p, text: n.Original, nodes: body}
	switch {
	case stages == 1:
		s.Label = ""
	case s.Label == "":
		s.Label = defaultLabel(s.Index)
	}
	base, err := p.expand(from.BaseName, p.global)
	if err != nil {
		return p.failAt(n, "%s", plain(err))
	}
	if base == "" {
		return p.failAt(n, "%q is empty: give its ARG a value, or pass it with --build-arg", from.BaseName)
	}
	s.Platform = p.Platform
	if from.Platform != "" {
		if err := p.setPlatform(s, from.Platform, n); err != nil {
			return err
		}
	}
	if s.Base = p.stageNamed(base); s.Base != nil {
		s.Platform = s.Base.Platform
	} else {
		s.From = base
	}
	if s.From != "" && s.From != Scratch {
		s.Steps = 1
	}
	for _, n := range body {
		if makesStep(n) {
			s.Steps++
		}
	}
	p.Stages = append(p.Stages, s)
	return nil
}

func (p *Plan) setPlatform(s *Stage, word string, n *parser.Node) error {
	text, err := p.expand(word, p.global)
	if err != nil {
		return p.failAt(n, "%s", plain(err))
	}
	if text == "" {
		return p.failAt(n, "the platform %s is empty", word)
	}
	platform, err := parsePlatform(text)
	if err != nil {
		return p.failAt(n, "%s", plain(err))
	}
	s.Platform = platform.String()
	return nil
}

// stageNamed returns the last stage so far of that name, or nil.
func (p *Plan) stageNamed(name string) *Stage {
	for _, s := range slices.Backward(p.Stages) {
		if s.Name != "" && strings.EqualFold(s.Name, name) {
			return s
		}
	}
	return nil
}

// Needed returns the stages that the target is made of, as far as the file alone shows it, in the order of the file.
// Triggers of base images can name more.
func (p *Plan) Needed() []*Stage {
	needed := map[*Stage]bool{}
	var add func(s *Stage)
	add = func(s *Stage) {
		if s == nil || needed[s] {
			return
		}
		needed[s] = true
		add(s.Base)
		for _, from := range s.copies() {
			add(from)
		}
	}
	add(p.Target)
	var out []*Stage
	for _, s := range p.Stages {
		if needed[s] {
			out = append(out, s)
		}
	}
	return out
}

func platforms(opt Options) (target, build string, err error) {
	build = opt.BuildPlatform
	if build == "" {
		build = "linux/" + runtime.GOARCH
	}
	target = opt.Platform
	if target == "" {
		target = build
	}
	b, err := parsePlatform(build)
	if err != nil {
		return "", "", err
	}
	t, err := parsePlatform(target)
	if err != nil {
		return "", "", err
	}
	return t.String(), b.String(), nil
}
