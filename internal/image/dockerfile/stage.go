package dockerfile

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"banger/internal/nearest"
)

// makesStep reports whether an instruction changes files.
func makesStep(n *parser.Node) bool {
	switch strings.ToLower(n.Value) {
	case command.Run, command.Copy, command.Add, command.Workdir:
		return true
	}
	return false
}

// findTarget sets the stage that is to be built.
func (p *Plan) findTarget(name string) error {
	p.Target = p.Stages[len(p.Stages)-1]
	p.global.put("TARGETSTAGE", cmp.Or(name, p.Target.Name, "default"))
	if name == "" {
		return nil
	}
	if s := p.stageNamed(name); s != nil {
		p.Target = s
		return nil
	}
	if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(p.Stages) {
		p.Target = p.Stages[i]
		return nil
	}
	var names []string
	for _, s := range p.Stages {
		if s.Name != "" {
			names = append(names, s.Name)
		}
	}
	hint := "no stage has a name (FROM image AS name)"
	if len(names) > 0 {
		hint = "there are " + strings.Join(names, ", ")
	}
	if near := nearest.Of(name, names); near != "" {
		hint = "did you mean " + near + "?"
	}
	return p.fail(p.Stages[0].Line, "", "no stage is called %s: %s", oneLine(name, 40), hint)
}

// checkSyntax says that the parser a file asks for is not downloaded.
func (p *Plan) checkSyntax(data []byte) {
	syntax, _, at, ok := parser.DetectSyntax(data)
	if !ok {
		return
	}
	name, _, _ := strings.Cut(syntax, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	if slices.Contains([]string{"docker/dockerfile", "docker.io/docker/dockerfile"}, name) {
		return
	}
	line := 1
	if len(at) > 0 {
		line = at[0].Start.Line
	}
	p.warn(line, "syntax %s is not downloaded: banger reads the file with its own parser", oneLine(syntax, 60))
}

// predefined are arguments that need no ARG: proxies, and those that builders know.
func predefined(name string) bool {
	return isProxy(name) || strings.HasPrefix(name, "BUILDKIT_") || name == "SOURCE_DATE_EPOCH" || name == "TARGETSTAGE"
}

func isProxy(name string) bool {
	return slices.Contains([]string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"}, strings.ToLower(name))
}

// checkArgs warns of build arguments that no ARG takes.
func (p *Plan) checkArgs() {
	used := map[string]bool{}
	for _, kv := range p.global.list {
		name, _, _ := strings.Cut(kv, "=")
		used[name] = true
	}
	for _, s := range p.Stages {
		for _, n := range s.nodes {
			if !strings.EqualFold(n.Value, command.Arg) {
				continue
			}
			if cmd, err := p.instruction(n); err == nil {
				for _, a := range cmd.(*instructions.ArgCommand).Args {
					used[a.Key] = true
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.buildArgs)) {
		if !used[name] && !predefined(name) {
			p.warn(1, "build argument %s is not used: there is no ARG of that name", oneLine(name, 60))
		}
	}
}

// sourceOf returns the stage or the image that COPY --from=ref names in stage s; neither for the build context.
func (s *Stage) sourceOf(ref string) (*Stage, string, error) {
	if ref == "" {
		return nil, "", nil
	}
	if strings.ContainsRune(ref, '$') {
		return nil, "", errors.New("--from cannot have a variable: name a stage with FROM and the variable, and copy from that")
	}
	index := -1
	if n, err := strconv.Atoi(ref); err == nil {
		if n < 0 || n >= len(s.plan.Stages) {
			return nil, "", errors.New("there is no stage " + ref + ": the first is 0")
		}
		index = n
	} else if i := slices.IndexFunc(s.plan.Stages, func(o *Stage) bool { return o.Name != "" && strings.EqualFold(o.Name, ref) }); i >= 0 {
		index = s.plan.lastNamed(ref, s.Index, i)
	}
	switch {
	case index < 0:
		return nil, ref, nil
	case index >= s.Index:
		return nil, "", errors.New("stage " + oneLine(ref, 40) + " is not above this one: move it up")
	}
	return s.plan.Stages[index], "", nil
}

// lastNamed returns the last stage of that name before stage number before, or otherwise.
func (p *Plan) lastNamed(name string, before, otherwise int) int {
	for i := before - 1; i >= 0; i-- {
		if p.Stages[i].Name != "" && strings.EqualFold(p.Stages[i].Name, name) {
			return i
		}
	}
	return otherwise
}

// copies returns the stages that the stage copies from, by itself or by triggers of the stage below it.
func (s *Stage) copies() []*Stage {
	var out []*Stage
	for _, n := range s.nodes {
		out = append(out, s.copiesOf(n)...)
	}
	if s.Base != nil {
		for _, n := range s.Base.nodes {
			if trigger := triggerOf(n); trigger != nil {
				out = append(out, s.copiesOf(trigger)...)
			}
		}
	}
	return out
}

func (s *Stage) copiesOf(n *parser.Node) []*Stage {
	if !strings.EqualFold(n.Value, command.Copy) {
		return nil
	}
	cmd, err := s.plan.instruction(n)
	if err != nil {
		return nil
	}
	from, _, err := s.sourceOf(cmd.(*instructions.CopyCommand).From)
	if from == nil || err != nil {
		return nil
	}
	return []*Stage{from}
}

// triggerOf returns the instruction inside an ONBUILD, or nil.
func triggerOf(n *parser.Node) *parser.Node {
	if !strings.EqualFold(n.Value, command.Onbuild) || n.Next == nil || len(n.Next.Children) != 1 {
		return nil
	}
	return n.Next.Children[0]
}

// check finds what is not supported and what is wrong, as far as the text alone shows it.
func (s *Stage) check() error {
	for _, n := range s.nodes {
		cmd, err := s.plan.instruction(n)
		if err != nil {
			return err
		}
		if err := s.checkCommand(cmd); err != nil {
			return s.plan.failAt(n, "%s", plain(err))
		}
	}
	return nil
}

func (s *Stage) checkCommand(cmd any) error {
	switch c := cmd.(type) {
	case *instructions.RunCommand:
		return checkRun(c)
	case *instructions.CopyCommand:
		if _, _, err := s.sourceOf(c.From); err != nil {
			return err
		}
		return checkCopy(c)
	case *instructions.AddCommand:
		return checkAdd(c)
	case *instructions.StopSignalCommand:
		if !strings.ContainsRune(c.Signal, '$') {
			return checkSignal(c.Signal)
		}
	case *instructions.ShellCommand:
		if len(c.Shell) == 0 || c.Shell[0] == "" {
			return errors.New(`SHELL needs a program: SHELL ["/bin/sh", "-c"]`)
		}
	}
	return nil
}
