package dockerfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"banger/internal/fault"
	"banger/internal/image/source"
)

// maxScript bounds the script of a Command.
const maxScript = 16 << 20

// Command returns the plan of a build without a Dockerfile, whose Name is empty: one RUN in the image from. It runs argv, or the script, which
// /bin/sh -e reads if it does not begin with #!.
func Command(from string, argv []string, script []byte, opt Options) (*Plan, error) {
	target, build, err := platforms(opt)
	if err != nil {
		return nil, err
	}
	run, title, err := commandRun(argv, script)
	if err != nil {
		return nil, err
	}
	p := &Plan{Platform: target, escape: '\\', global: platformArgs(target, build, nil), buildArgs: opt.BuildArgs}
	s := &Stage{From: from, Platform: target, Line: 1, Steps: 1, plan: p, text: "FROM " + oneLine(from, maxShown), command: run, title: title}
	if from != Scratch {
		s.Steps++
	}
	p.Stages, p.Target = []*Stage{s}, s
	return p, nil
}

func commandRun(argv []string, script []byte) (*Run, string, error) {
	switch {
	case len(argv) > 0 && len(script) > 0:
		return nil, "", fault.New(fault.Invalid, "a build runs a script or a command, not both")
	case len(argv) > 0:
		if argv[0] == "" || slices.ContainsFunc(argv, func(s string) bool { return strings.ContainsRune(s, 0) }) {
			return nil, "", fault.New(fault.Invalid, "the command is empty or has a NUL in it")
		}
		return &Run{Argv: slices.Clone(argv)}, "RUN " + strings.Join(argv, " "), nil
	case len(script) == 0:
		return nil, "", fault.New(fault.Invalid, "the script is empty")
	case len(script) > maxScript:
		return nil, "", fault.New(fault.Invalid, "the script has %d bytes, more than %d", len(script), maxScript)
	}
	if !bytes.HasPrefix(script, []byte("#!")) {
		script = append([]byte("#!/bin/sh -e\n"), script...)
	}
	sum := sha256.Sum256(script)
	s := &Script{Path: scriptDir + "/script-" + hex.EncodeToString(sum[:4]), Data: script}
	return &Run{Argv: []string{s.Path}, Script: s}, "RUN a script", nil
}

// resolveCommand is resolve for a stage of Command.
func (r *resolver) resolveCommand() *Resolved {
	run := *r.stage.command
	run.Env, run.Proxy = slices.Clone(r.scope.list), r.proxies()
	r.total = r.stage.Steps
	title := oneLine(r.stage.title, 2*maxShown)
	cfg := r.cfg
	cfg.Env = r.env.list
	step := Step{Line: 1, Text: oneLine(title, maxShown), Title: title, User: r.cfg.User, Workdir: r.dir(), Run: &run}
	return &Resolved{Steps: []Step{step}, Config: cfg, Total: r.total, scope: r.scope}
}

// commandConfig is what the image of a Command keeps of the one below: triggers are for Dockerfiles.
func commandConfig(image source.Config) source.Config {
	image.OnBuild = nil
	return image
}
