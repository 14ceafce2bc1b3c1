package dockerfile

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/image/source"
)

// host is the platform that tests build on and for.
const host = "linux/amd64"

func parse(t *testing.T, text string, opt Options) *Plan {
	t.Helper()
	opt.BuildPlatform = host
	p, err := Parse("Dockerfile", []byte(text), opt)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// resolveStage resolves s on images of that configuration.
func resolveStage(s *Stage, image source.Config) (*Resolved, error) {
	if s.Base == nil {
		return s.Resolve(image)
	}
	below, err := resolveStage(s.Base, image)
	if err != nil {
		return nil, err
	}
	return s.ResolveOn(below)
}

func resolve(t *testing.T, text string, opt Options, image source.Config) *Resolved {
	t.Helper()
	r, err := resolveStage(parse(t, text, opt).Target, image)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestConfig(t *testing.T) {
	path := "PATH=" + defaultPath
	for _, tc := range []struct {
		name, text string
		image      source.Config
		opt        Options
		want       source.Config
	}{
		{name: "nothing", text: "FROM x", want: source.Config{Env: []string{path}}},
		{name: "the image's own", text: "FROM x\nENV A=2",
			image: source.Config{User: "u", Shell: "/bin/zsh", Workdir: "/w", Env: []string{"A=1", "PATH=/bin"}, Cmd: []string{"c"}, Labels: map[string]string{"l": "1"}},
			want:  source.Config{User: "u", Shell: "/bin/zsh", Workdir: "/w", Env: []string{"A=2", "PATH=/bin"}, Cmd: []string{"c"}, Labels: map[string]string{"l": "1"}}},
		{name: "env sees what was before its line", text: "FROM x\nENV A=1\nENV A=2 B=$A C='$A' D=\"$A\\$\" E=a\\ b",
			want: source.Config{Env: []string{path, "A=2", "B=1", "C=$A", "D=1$", "E=a b"}}},
		{name: "env with a space", text: "FROM x\nENV A one two", want: source.Config{Env: []string{path, "A=one two"}}},
		{name: "modifiers", text: "FROM x\nENV A=abcabc\nENV B=${A:-x} C=${N:-x} D=${A:+x} E=${N-y} F=${A#a*b} G=${A%%b*} H=${A/b/_} I=${A//b/_} J=\\$A K=${N}",
			want: source.Config{Env: []string{path, "A=abcabc", "B=abcabc", "C=x", "D=x", "E=y", "F=cabc", "G=a", "H=a_cabc", "I=a_ca_c", "J=$A", "K="}}},
		{name: "arg is not in the image", text: "FROM x\nARG A=1\nENV B=$A", want: source.Config{Env: []string{path, "B=1"}}},
		{name: "arg from the command line", text: "FROM x\nARG A=1\nENV B=$A", opt: Options{BuildArgs: map[string]string{"A": "9"}}, want: source.Config{Env: []string{path, "B=9"}}},
		{name: "arg without its line", text: "FROM x\nENV B=$A", opt: Options{BuildArgs: map[string]string{"A": "9"}}, want: source.Config{Env: []string{path, "B="}}},
		{name: "arg before from needs its line", text: "ARG A=1\nFROM x\nENV B=$A\nARG A\nENV C=$A", want: source.Config{Env: []string{path, "B=", "C=1"}}},
		{name: "arg of a stage below", text: "FROM x AS a\nARG A=1\nFROM a\nENV B=$A", want: source.Config{Env: []string{path, "B=1"}}},
		{name: "arg of another stage", text: "FROM x AS a\nARG A=1\nFROM x\nENV B=$A", want: source.Config{Env: []string{path, "B="}}},
		{name: "platforms", text: "FROM x\nARG TARGETPLATFORM\nARG TARGETARCH BUILDPLATFORM TARGETVARIANT\nENV A=$TARGETPLATFORM,$TARGETARCH,$BUILDPLATFORM,$TARGETVARIANT",
			opt: Options{Platform: "linux/arm/v7"}, want: source.Config{Env: []string{path, "A=linux/arm/v7,arm,linux/amd64,v7"}}},
		{name: "platforms without their line", text: "FROM x\nENV A=$TARGETARCH", want: source.Config{Env: []string{path, "A="}}},
		{name: "workdir", text: "FROM x\nWORKDIR a\nWORKDIR b/../c\nWORKDIR $PWD/d", image: source.Config{Workdir: "/w"}, want: source.Config{Env: []string{path}, Workdir: "/d"}},
		{name: "relative workdir", text: "FROM x\nWORKDIR a\nWORKDIR b/../c", image: source.Config{Workdir: "/w"}, want: source.Config{Env: []string{path}, Workdir: "/w/a/c"}},
		{name: "user", text: "FROM x\nENV U=app\nUSER $U:1000", want: source.Config{Env: []string{path, "U=app"}, User: "app:1000"}},
		{name: "entrypoint takes the cmd of the image away", text: "FROM x\nENTRYPOINT [\"/e\", \"$A\"]", image: source.Config{Cmd: []string{"c"}},
			want: source.Config{Env: []string{path}, Entrypoint: []string{"/e", "$A"}}},
		{name: "entrypoint keeps the cmd of the file", text: "FROM x\nCMD a b\nENTRYPOINT e", want: source.Config{Env: []string{path}, Entrypoint: []string{"/bin/sh", "-c", "e"}, Cmd: []string{"/bin/sh", "-c", "a b"}}},
		{name: "shell", text: "FROM x\nSHELL [\"/bin/bash\", \"-ec\"]\nCMD a", want: source.Config{Env: []string{path}, RunShell: []string{"/bin/bash", "-ec"}, Cmd: []string{"/bin/bash", "-ec", "a"}}},
		{name: "empty cmd", text: "FROM x\nCMD []", image: source.Config{Cmd: []string{"c"}}, want: source.Config{Env: []string{path}, Cmd: []string{}}},
		{name: "expose", text: "FROM x\nENV P='90 91'\nEXPOSE 80 53/UDP 8000-8002 $P", image: source.Config{ExposedPorts: []string{"22/tcp"}},
			want: source.Config{Env: []string{path, "P=90 91"}, ExposedPorts: []string{"22/tcp", "53/udp", "80/tcp", "90/tcp", "91/tcp", "8000/tcp", "8001/tcp", "8002/tcp"}}},
		{name: "label", text: "FROM x\nLABEL a=1 \"b c\"=\"d e\"\nLABEL a=2", want: source.Config{Env: []string{path}, Labels: map[string]string{"a": "2", "b c": "d e"}}},
		{name: "stopsignal", text: "FROM x\nSTOPSIGNAL SIGINT", want: source.Config{Env: []string{path}, StopSignal: "SIGINT"}},
		{name: "onbuild is for others", text: "FROM x\nONBUILD ENV A=1\nonbuild RUN b", want: source.Config{Env: []string{path}, OnBuild: []string{"ENV A=1", "RUN b"}}},
		{name: "triggers of the image", text: "FROM x\nENV B=$A", image: source.Config{OnBuild: []string{"ENV A=1"}}, want: source.Config{Env: []string{path, "A=1", "B=1"}}},
		{name: "triggers of a stage", text: "FROM x AS a\nONBUILD ENV A=1\nFROM a\nENV B=$A", want: source.Config{Env: []string{path, "A=1", "B=1"}}},
		{name: "another escape", text: "# escape=`\nFROM x\nENV A=\"a\\b\" `\n  B=`$A", want: source.Config{Env: []string{path, `A=a\b`, "B=$A"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := resolve(t, tc.text, tc.opt, tc.image)
			if diff := cmp.Diff(tc.want, got.Config); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

// brief is a step on one line.
func brief(s Step) string {
	out := fmt.Sprintf("%d %s user=%s dir=%s", s.Line, s.Title, s.User, s.Workdir)
	if s.Trigger {
		out += " trigger"
	}
	switch {
	case s.Run != nil:
		out += fmt.Sprintf(" run=%q", s.Run.Argv)
		if s.Run.Script != nil {
			out += fmt.Sprintf(" script=%q", s.Run.Script.Data)
		}
		if len(s.Run.Proxy) > 0 {
			out += fmt.Sprintf(" proxy=%q", s.Run.Proxy)
		}
	case s.Copy != nil:
		c := s.Copy
		out += fmt.Sprintf(" copy=%q to=%s", c.Sources, c.Dest)
		if c.Add {
			out += " add"
		}
		if c.Stage != nil {
			out += fmt.Sprintf(" stage=%d", c.Stage.Index)
		}
		if c.Image != "" {
			out += " image=" + c.Image
		}
		for _, doc := range c.Contents {
			out += fmt.Sprintf(" %s=%q", doc.Name, doc.Data)
		}
		if c.Chown != "" {
			out += " chown=" + c.Chown
		}
		if c.Chmod != nil {
			out += " chmod=" + c.Chmod.String()
		}
		if len(c.Exclude) > 0 {
			out += fmt.Sprintf(" exclude=%q", c.Exclude)
		}
		if c.Parents {
			out += " parents"
		}
		if c.Checksum != "" {
			out += " checksum=" + c.Checksum[:10]
		}
	case s.Make:
		out += " make"
	}
	return out
}

func TestSteps(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		image      source.Config
		opt        Options
		want       []string
	}{
		{name: "run", text: "FROM x\nRUN echo  $A \\\n  && b\nUSER u\nWORKDIR /w\nrun [\"/bin/a\", \"$A\"]", want: []string{
			`2 RUN echo $A && b user= dir=/ run=["/bin/sh" "-c" "echo  $A   && b"]`,
			`5 WORKDIR /w user=u dir=/w make`,
			`6 RUN ["/bin/a", "$A"] user=u dir=/w run=["/bin/a" "$A"]`,
		}},
		{name: "titles show values", text: "FROM x\nARG V=3\nRUN make-$V $W\nCOPY a-$V /", want: []string{
			`3 RUN make-3 $W user= dir=/ run=["/bin/sh" "-c" "make-$V $W"]`,
			`4 COPY a-3 / user= dir=/ copy=["a-3"] to=/`,
		}},
		{name: "flags that say nothing", text: "FROM x\nRUN --network=default --security=sandbox a", want: []string{
			`2 RUN --network=default --security=sandbox a user= dir=/ run=["/bin/sh" "-c" "a"]`}},
		{name: "heredocs", text: "FROM x\nRUN <<EOF\na $A\nb\nEOF\nRUN <<-'E' \n\t#!/usr/bin/env python3\n\tprint(1)\n\tE\nRUN cat <<A > /a && cat <<B\n1\nA\n2\nB", want: []string{
			`2 RUN <<EOF (a $A...) user= dir=/ run=["/bin/sh" "-c" "a $A\nb\n"]`,
			`6 RUN <<-'E' (#!/usr/bin/env python3...) user= dir=/ run=["/.banger-run/E"] script="#!/usr/bin/env python3\nprint(1)\n"`,
			`10 RUN cat <<A > /a && cat <<B (1) user= dir=/ run=["/bin/sh" "-c" "cat <<A > /a && cat <<B\n1\nA\n2\nB"]`,
		}},
		{name: "proxies", text: "FROM x\nARG https_proxy=c\nRUN a", opt: Options{BuildArgs: map[string]string{"HTTP_PROXY": "p", "https_proxy": "q"}}, want: []string{
			`3 RUN a user= dir=/ run=["/bin/sh" "-c" "a"] proxy=["HTTP_PROXY=p" "http_proxy=p" "HTTPS_PROXY=q"]`}},
		{name: "copy", text: "FROM x\nWORKDIR /w\nENV D=dst\nCOPY a b/ ./c\nCOPY [\"a b\", \"$D/\"]\nCOPY --link --chown=u:g --chmod=u+x --exclude=*.o --exclude=!a.o --parents a/./b .\nCOPY a ..", want: []string{
			`2 WORKDIR /w user= dir=/w make`,
			`4 COPY a b/ ./c user= dir=/w copy=["a" "b/"] to=/w/c`,
			`5 COPY ["a b", "dst/"] user= dir=/w copy=["a b"] to=/w/dst/`,
			`6 COPY --link --chown=u:g --chmod=u+x --exclude=*.o --exclude=!a.o --parents a/./b . user= dir=/w copy=["a/./b"] to=/w/ chown=u:g chmod=u+x exclude=["*.o" "!a.o"] parents`,
			`7 COPY a .. user= dir=/w copy=["a"] to=/`,
		}},
		{name: "copy a heredoc", text: "FROM x\nARG A=1\nCOPY <<one <<'two' f /d/\na=$A \"q\"\none\na=$A\ntwo", want: []string{
			`3 COPY <<one <<'two' f /d/ user= dir=/ copy=["f"] to=/d/ one="a=1 \"q\"\n" two="a=$A\n"`}},
		{name: "copy from", text: "FROM x AS One\nFROM y\nFROM z\nCOPY --from=ONE a /\nCOPY --from=1 a /\nCOPY --from=img:1 a /", want: []string{
			`4 COPY --from=ONE a / user= dir=/ copy=["a"] to=/ stage=0`,
			`5 COPY --from=1 a / user= dir=/ copy=["a"] to=/ stage=1`,
			`6 COPY --from=img:1 a / user= dir=/ copy=["a"] to=/ image=img:1`,
		}},
		{name: "add", text: "FROM x\nADD a.tar b http://h/$N /d/\nADD --checksum=sha256:" + strings.Repeat("ab", 32) + " https://h/x /x", want: []string{
			`2 ADD a.tar b http://h/$N /d/ user= dir=/ copy=["a.tar" "b" "http://h/"] to=/d/ add`,
			`3 ADD --checksum=sha256:` + strings.Repeat("ab", 32) + ` https://h/x /x user= dir=/ copy=["https://h/x"] to=/x add checksum=sha256:aba`,
		}},
		{name: "triggers", text: "FROM x\nRUN b", image: source.Config{OnBuild: []string{"COPY . /src", "ENV A=1", "RUN make $A"}}, want: []string{
			`1 COPY . /src user= dir=/ trigger copy=["."] to=/src`,
			`1 RUN make 1 user= dir=/ trigger run=["/bin/sh" "-c" "make $A"]`,
			`2 RUN b user= dir=/ run=["/bin/sh" "-c" "b"]`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := resolve(t, tc.text, tc.opt, tc.image)
			var got []string
			for _, s := range r.Steps {
				got = append(got, brief(s))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if r.Total != len(r.Steps)+1 {
				t.Errorf("total %d for %d steps and an image", r.Total, len(r.Steps))
			}
		})
	}
}

func TestRunEnvironment(t *testing.T) {
	r := resolve(t, "FROM x\nARG A=1\nENV B=2\nRUN a\nENV A=3\nARG B=4\nRUN b", Options{}, source.Config{Env: []string{"PATH=/p"}})
	if diff := cmp.Diff([]string{"PATH=/p", "A=1", "B=2"}, r.Steps[0].Run.Env); diff != "" {
		t.Errorf("first:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"PATH=/p", "A=3", "B=4"}, r.Steps[1].Run.Env); diff != "" {
		t.Errorf("second:\n%s", diff)
	}
}

func TestStages(t *testing.T) {
	const text = "ARG V=3\nFROM alpine:$V AS one\nFROM --platform=$BUILDPLATFORM golang AS Two\nRUN a\nFROM one\nWORKDIR /x\nFROM scratch AS last\nCOPY --from=two a /\n"
	for _, tc := range []struct {
		target string
		want   []string // needed stages: label, image or base, platform, steps
	}{
		{"", []string{"two golang linux/amd64 2", "last scratch linux/arm64 1"}},
		{"ONE", []string{"one alpine:3 linux/arm64 1"}},
		{"2", []string{"one alpine:3 linux/arm64 1", "stage-2 (one) linux/arm64 1"}},
	} {
		p := parse(t, text, Options{Target: tc.target, Platform: "linux/arm64/v8"})
		var got []string
		for _, s := range p.Needed() {
			from := s.From
			if s.Base != nil {
				from = "(" + s.Base.Label + ")"
			}
			got = append(got, fmt.Sprintf("%s %s %s %d", s.Label, from, s.Platform, s.Steps))
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("target %q (-want +got):\n%s", tc.target, diff)
		}
	}
	if one := parse(t, "FROM x AS y", Options{}); one.Stages[0].Label != "" {
		t.Errorf("the only stage is called %q", one.Stages[0].Label)
	}
	if p := parse(t, "FROM scratch AS a\nFROM x AS c\nONBUILD COPY --from=a f /\nFROM c", Options{}); len(p.Needed()) != 3 {
		t.Errorf("a trigger's stage is not needed: %d", len(p.Needed()))
	}
	if p := parse(t, "FROM x AS a\nFROM y AS a\nFROM a", Options{}); p.Target.Base != p.Stages[1] {
		t.Error("of two stages with one name the later one counts")
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"", "Dockerfile:1: file with no instructions"},
		{"# only a comment", "Dockerfile:1: file with no instructions: # only a comment"},
		{"RUN a", "Dockerfile:1: the first instruction is FROM (only ARG may come before it): RUN a"},
		{"ARG A=1", "Dockerfile:1: there is no FROM: ARG A=1"},
		{"FROM x\n\nRUNN make", "Dockerfile:3: unknown instruction: RUNN (did you mean RUN?): RUNN make"},
		{"FROM", "Dockerfile:1: FROM requires either one or three arguments: FROM"},
		{"FROM $A", `Dockerfile:1: "$A" is empty: give its ARG a value, or pass it with --build-arg: FROM $A`},
		{"FROM ${A:?needed}", "Dockerfile:1: A: needed: FROM ${A:?needed}"},
		{"FROM ${A", "Dockerfile:1: syntax error: missing '}': FROM ${A"},
		{"FROM x AS 1a", `Dockerfile:1: invalid name for build stage: "1a", name can't start with a number or contain symbols: FROM x AS 1a`},
		{"FROM --platform=windows/amd64 x", "Dockerfile:1: platform windows/amd64: only linux images can be built: FROM --platform=windows/amd64 x"},
		{"FROM --platform=$P x", "Dockerfile:1: the platform $P is empty: FROM --platform=$P x"},
		{"FROM --platform=a/b/c/d x", `Dockerfile:1: "a/b/c/d" is not a platform: write it as linux/amd64: FROM --platform=a/b/c/d x`},
		{"FROM x\nRUN --mount=type=cache,target=/c make", "Dockerfile:2: RUN --mount is not supported: remove it and delete the cache at the end of the command; a step that did not change is not run again anyway: RUN --mount=type=cache,target=/c make"},
		{"FROM x\nRUN --mount=type=secret,id=s make", "Dockerfile:2: RUN --mount is not supported: fetch what needs a secret outside of the build, and COPY it: RUN --mount=type=secret,id=s make"},
		{"FROM x\nRUN --mount=type=tmpfs,target=/t make", "Dockerfile:2: RUN --mount is not supported: remove it and delete the files at the end of the command: RUN --mount=type=tmpfs,target=/t make"},
		{"FROM x\nRUN --mount=target=/t make", "Dockerfile:2: RUN --mount is not supported: use COPY for the files, in a stage of its own where they shall not stay: RUN --mount=target=/t make"},
		{"FROM x\nRUN --network=none make", "Dockerfile:2: RUN --network=none is not supported: remove it, every step has the network of a VM: RUN --network=none make"},
		{"FROM x\nRUN --security=insecure make", "Dockerfile:2: RUN --security=insecure is not supported: remove it, in its VM a step is root already: RUN --security=insecure make"},
		{"FROM x\nRUN --netwrok=none make", "Dockerfile:2: unknown flag: --netwrok (did you mean network?): RUN --netwrok=none make"},
		{"FROM x\nRUN", "Dockerfile:2: RUN needs a command: RUN"},
		{"FROM x\nRUN []", "Dockerfile:2: RUN needs a command: RUN []"},
		{"FROM x\nRUN <<EOF\na", "Dockerfile:2: unterminated heredoc: RUN <<EOF"},
		{"FROM x\nCOPY a", "Dockerfile:2: COPY requires at least two arguments, but only one was provided. Destination could not be determined: COPY a"},
		{"FROM x\nCOPY --from=$A a /", "Dockerfile:2: --from cannot have a variable: name a stage with FROM and the variable, and copy from that: COPY --from=$A a /"},
		{"FROM x\nCOPY --from=3 a /", "Dockerfile:2: there is no stage 3: the first is 0: COPY --from=3 a /"},
		{"FROM x\nCOPY --from=0 a /", "Dockerfile:2: stage 0 is not above this one: move it up: COPY --from=0 a /"},
		{"FROM x AS a\nCOPY --from=b a /\nFROM a AS b", "Dockerfile:2: stage b is not above this one: move it up: COPY --from=b a /"},
		{"FROM x\nCOPY --chmod=999 a /", "Dockerfile:2: --chmod=999 is not a mode: write it as 755 or u=rwX,go=rX: COPY --chmod=999 a /"},
		{"FROM x\nCOPY --exclude=a[ a /", "Dockerfile:2: --exclude=a[: syntax error in pattern: COPY --exclude=a[ a /"},
		{"FROM x\nCOPY --chown=a:b:c a /", "Dockerfile:2: --chown=a:b:c: write it as USER or USER:GROUP: COPY --chown=a:b:c a /"},
		{"FROM x\nCOPY http://h/x /", "Dockerfile:2: COPY cannot download http://h/x: use ADD: COPY http://h/x /"},
		{"FROM x\nCOPY \"\" /", "Dockerfile:2: a source is empty: the whole build context is ./: COPY \"\" /"},
		{"FROM x\nADD https://h/r.git#v1 /", "Dockerfile:2: ADD of a git repository is not supported: clone it, then COPY it, or use RUN git clone: ADD https://h/r.git#v1 /"},
		{"FROM x\nADD git@h:r.git /", "Dockerfile:2: ADD of a git repository is not supported: clone it, then COPY it, or use RUN git clone: ADD git@h:r.git /"},
		{"FROM x\nADD --keep-git-dir=true a /", "Dockerfile:2: ADD --keep-git-dir is not supported, because git repositories are not: remove it: ADD --keep-git-dir=true a /"},
		{"FROM x\nADD --checksum=sha256:12 http://h/x /", "Dockerfile:2: --checksum has to be sha256: and 64 hexadecimal digits: ADD --checksum=sha256:12 http://h/x /"},
		{"FROM x\nADD --checksum=sha256:12 x /", "Dockerfile:2: --checksum is for a URL: remove it: ADD --checksum=sha256:12 x /"},
		{"FROM x\nEXPOSE 1/icmp", `Dockerfile:2: "1/icmp" is not a port: write it as 80, 53/udp or 8000-8010/tcp: EXPOSE 1/icmp`},
		{"FROM x\nEXPOSE 80:80", `Dockerfile:2: "80:80" is not a port: write it as 80, 53/udp or 8000-8010/tcp: EXPOSE 80:80`},
		{"FROM x\nSTOPSIGNAL SIGNO", `Dockerfile:2: "SIGNO" is not a signal: write it as SIGTERM or 15: STOPSIGNAL SIGNO`},
		{"FROM x\nSHELL /bin/sh", "Dockerfile:2: SHELL requires the arguments to be in JSON form: SHELL /bin/sh"},
		{"FROM x\nONBUILD FROM y", "Dockerfile:2: FROM isn't allowed as an ONBUILD trigger: ONBUILD FROM y"},
		{"FROM x\nUSER $U", `Dockerfile:2: "" is not a user: USER $U`},
		{"FROM x\nENV A=1\nENV B=${A/x/${A}}", "Dockerfile:3: a ${...} inside a ${NAME/PATTERN/TEXT} is not supported: use another variable for it: ENV B=${A/x/${A}}"},
		{"FROM x\nENV A", "Dockerfile:2: ENV must have two arguments: ENV A"},
		{"FROM x\nLABEL A='b", "Dockerfile:2: unexpected end of statement while looking for matching single-quote: LABEL A='b"},
		{"# escape=x\nFROM x", "Dockerfile:1: invalid escape token 'x' does not match ` or \\: # escape=x"},
		{"FROM x AS a\nONBUILD RUN --mount=target=/t a\nFROM a", "Dockerfile:3: ONBUILD RUN --mount=target=/t a, of the image below: RUN --mount is not supported: use COPY for the files, in a stage of its own where they shall not stay: FROM a"},
	} {
		p, err := Parse("Dockerfile", []byte(tc.text), Options{BuildPlatform: host})
		if err == nil {
			_, err = resolveStage(p.Target, source.Config{})
		}
		if err == nil {
			t.Errorf("%q: no error, want %s", tc.text, tc.want)
		} else if err.Error() != tc.want || !fault.Is(err, fault.Invalid) {
			t.Errorf("%q:\n got %s (%s)\nwant %s", tc.text, err, fault.ClassOf(err), tc.want)
		}
	}
}

func TestUnneededStageMayHaveAnything(t *testing.T) {
	p := parse(t, "FROM x AS a\nRUN --mount=type=ssh git clone y\nFROM z", Options{})
	if len(p.Needed()) != 1 {
		t.Errorf("%d stages are needed", len(p.Needed()))
	}
}

func TestTargetNotThere(t *testing.T) {
	for _, tc := range []struct{ text, target, want string }{
		{"FROM x AS build\nFROM y AS test", "biuld", "Dockerfile:1: no stage is called biuld: did you mean build?"},
		{"FROM x AS build\nFROM y AS test", "other", "Dockerfile:1: no stage is called other: there are build, test"},
		{"FROM x", "a", "Dockerfile:1: no stage is called a: no stage has a name (FROM image AS name)"},
	} {
		_, err := Parse("Dockerfile", []byte(tc.text), Options{Target: tc.target})
		if err == nil || err.Error() != tc.want {
			t.Errorf("%s: %v, want %s", tc.target, err, tc.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	const text = "# syntax=acme/frontend:1@sha256:12\nFROM x\nMAINTAINER me\nVOLUME /a /b\nHEALTHCHECK NONE\nRUN a \\\n\n b\n"
	p := parse(t, text, Options{BuildArgs: map[string]string{"UNUSED": "1", "http_proxy": "x"}})
	r, err := p.Target.Resolve(source.Config{})
	if err != nil {
		t.Fatal(err)
	}
	want := []Warning{
		{8, "an empty line after a line continuation: remove it"},
		{1, "syntax acme/frontend:1@sha256:12 is not downloaded: banger reads the file with its own parser"},
		{1, "build argument UNUSED is not used: there is no ARG of that name"},
		{3, "MAINTAINER is ignored: use LABEL maintainer=..."},
		{4, "VOLUME /a /b makes no disk of its own: what is written there is on the disk of the VM"},
		{5, "HEALTHCHECK is ignored: banger does not check what runs in a VM"},
	}
	if diff := cmp.Diff(want, slices.Concat(p.Warnings, r.Warnings)); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	if p := parse(t, "# syntax=docker/dockerfile:1.7-labs\nFROM x", Options{}); len(p.Warnings) > 0 {
		t.Errorf("docker's own syntax: %v", p.Warnings)
	}
}

// A few lines that double a variable must not fill the memory.
func TestExpansionIsBounded(t *testing.T) {
	double := "FROM x\nENV A=0123456789\n" + strings.Repeat("ENV A=$A$A$A$A\n", 40)
	pattern := "FROM x\nENV A=" + strings.Repeat("a", 60000) + "\nENV B=${A//a/" + strings.Repeat("b", 60000) + "}"
	many := "FROM x\n" + strings.Repeat("ENV A=$A", 1) + "\nARG " + strings.Repeat("A ", 10)
	for name, text := range map[string]string{"doubling": double, "replacing": pattern} {
		p := parse(t, text, Options{})
		if _, err := p.Target.Resolve(source.Config{}); err == nil || !strings.Contains(err.Error(), "is longer than") {
			t.Errorf("%s: %v", name, err)
		}
	}
	parse(t, many, Options{})
	if _, err := Parse("Dockerfile", make([]byte, maxFile+1), Options{}); err == nil {
		t.Error("a file of more than the limit is read")
	}
	if _, err := Parse("Dockerfile", []byte("FROM x\n"+strings.Repeat("RUN a\n", maxInstructions)), Options{}); err == nil {
		t.Error("more instructions than the limit are read")
	}
	if _, err := Parse("Dockerfile", []byte(strings.Repeat("FROM x\n", maxStages+1)), Options{}); err == nil {
		t.Error("more stages than the limit are read")
	}
}

func TestChmod(t *testing.T) {
	for _, tc := range []struct {
		text string
		mode int64
		dir  bool
		want int64
	}{
		{"755", 0o600, false, 0o755}, {"4711", 0o600, true, 0o4711}, {"0644", 0, false, 0o644},
		{"+x", 0o640, false, 0o751}, {"u+x", 0o640, false, 0o740}, {"go-rwx", 0o755, true, 0o700},
		{"u=rwX,go=rX", 0o640, false, 0o644}, {"u=rwX,go=rX", 0o700, false, 0o755}, {"u=rwX,go=rX", 0o600, true, 0o755},
		{"a=r", 0o4755, false, 0o444}, {"u+s,g+s", 0o755, false, 0o6755}, {"+t", 0o755, true, 0o1755},
		{"g=u", 0o750, false, 0o770}, {"o=g,g-w+x", 0o664, false, 0o656}, {"u=", 0o777, false, 0o077},
	} {
		c, err := ParseChmod(tc.text)
		if err != nil {
			t.Errorf("%s: %v", tc.text, err)
		} else if got := c.Apply(tc.mode, tc.dir); got != tc.want {
			t.Errorf("%s of %o: %o, want %o", tc.text, tc.mode, got, tc.want)
		}
	}
	for _, text := range []string{"", "8", "17777", "x", "u", "u+q", "u+x,", "-5"} {
		if _, err := ParseChmod(text); err == nil {
			t.Errorf("%q is a mode", text)
		}
	}
}

func TestCommand(t *testing.T) {
	image := source.Config{User: "u", Workdir: "/w", Env: []string{"PATH=/p"}, Cmd: []string{"c"}, OnBuild: []string{"RUN no"}}
	for _, tc := range []struct {
		argv   []string
		script string
		want   string
	}{
		{[]string{"apt-get", "install", "a b"}, "", `1 RUN apt-get install a b user=u dir=/w run=["apt-get" "install" "a b"]`},
		{nil, "#!/bin/x\na\n", `1 RUN a script user=u dir=/w run=["/.banger-run/script-fab0d27f"] script="#!/bin/x\na\n"`},
		{nil, "echo a\n", `1 RUN a script user=u dir=/w run=["/.banger-run/script-af4fafc4"] script="#!/bin/sh -e\necho a\n"`},
	} {
		p, err := Command("img", tc.argv, []byte(tc.script), Options{BuildPlatform: host})
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Target.Resolve(image)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Needed()) != 1 || len(r.Steps) != 1 || r.Total != 2 || brief(r.Steps[0]) != tc.want {
			t.Errorf("%q %q: %d of %s", tc.argv, tc.script, len(r.Steps), brief(r.Steps[0]))
		}
		want := image
		want.OnBuild = nil
		if diff := cmp.Diff(want, r.Config); diff != "" {
			t.Errorf("config (-want +got):\n%s", diff)
		}
	}
	for _, argv := range [][]string{nil, {""}, {"a\x00"}} {
		if _, err := Command("img", argv, nil, Options{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", argv, err)
		}
	}
	if _, err := Command("img", []string{"a"}, []byte("b"), Options{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("both: %v", err)
	}
}
