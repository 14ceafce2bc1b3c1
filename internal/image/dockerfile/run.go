package dockerfile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// scriptDir is where a heredoc that begins with #! lies while it runs. It is in no image.
const scriptDir = "/.banger-run"

// checkRun refuses flags that change what a command sees.
func checkRun(c *instructions.RunCommand) error {
	used := slices.Sorted(slices.Values(c.FlagsUsed))
	for _, flag := range used {
		switch flag {
		case "network":
			if mode := instructions.GetNetwork(c); !isDefault(mode, instructions.NetworkDefault) {
				return fmt.Errorf("RUN --network=%s is not supported: remove it, every step has the network of a VM", mode)
			}
		case "security":
			if mode := instructions.GetSecurity(c); !isDefault(mode, instructions.SecuritySandbox) {
				return fmt.Errorf("RUN --security=%s is not supported: remove it, in its VM a step is root already", mode)
			}
		case "mount":
			return fmt.Errorf("RUN --mount is not supported: %s", insteadOfMount(c))
		default:
			return fmt.Errorf("RUN --%s is not supported: remove it", flag)
		}
	}
	if len(c.CmdLine) == 0 || len(c.CmdLine) == 1 && strings.TrimSpace(c.CmdLine[0]) == "" && len(c.Files) == 0 {
		return errors.New("RUN needs a command")
	}
	if !c.PrependShell && c.CmdLine[0] == "" {
		return errors.New("RUN needs a program as its first word")
	}
	if slices.ContainsFunc(c.CmdLine, func(s string) bool { return strings.ContainsRune(s, 0) }) {
		return errors.New("the command has a NUL in it")
	}
	return nil
}

// insteadOfMount says what to write in the place of a mount.
func insteadOfMount(c *instructions.RunCommand) string {
	// Without this GetMounts is empty; what is wrong with a flag that is refused anyway does not matter.
	_ = c.Expand(func(word string) (string, error) { return word, nil })
	for _, m := range instructions.GetMounts(c) {
		switch m.Type {
		case instructions.MountTypeCache:
			return "remove it and delete the cache at the end of the command; a step that did not change is not run again anyway"
		case instructions.MountTypeSecret, instructions.MountTypeSSH:
			return "fetch what needs a secret outside of the build, and COPY it"
		case instructions.MountTypeTmpfs:
			return "remove it and delete the files at the end of the command"
		}
	}
	return "use COPY for the files, in a stage of its own where they shall not stay"
}

// runCommand returns the command of a RUN, with a note about its heredoc for people.
func (r *resolver) runCommand(c *instructions.RunCommand) (*Run, string, error) {
	if err := checkRun(c); err != nil {
		return nil, "", err
	}
	if len(c.Files) == 0 {
		if !c.PrependShell {
			return &Run{Argv: slices.Clone(c.CmdLine)}, "", nil
		}
		return &Run{Argv: append(r.shell(), strings.Join(c.CmdLine, " "))}, "", nil
	}
	if len(c.CmdLine) != 1 || !c.PrependShell {
		return nil, "", errors.New("a heredoc needs the shell form of RUN")
	}
	line := c.CmdLine[0]
	if doc, _ := parser.ParseHeredoc(line); doc == nil {
		// The shell of the image reads the heredocs itself.
		var b strings.Builder
		b.WriteString(line)
		for _, f := range c.Files {
			b.WriteString("\n" + f.Data + f.Name)
		}
		return &Run{Argv: append(r.shell(), b.String())}, firstLine(c.Files[0].Data), nil
	}
	file := c.Files[0]
	data := file.Data
	if file.Chomp {
		data = parser.ChompHeredocContent(data)
	}
	note := firstLine(data)
	if !strings.HasPrefix(data, "#!") {
		return &Run{Argv: append(r.shell(), data)}, note, nil
	}
	if file.Name == "." || file.Name == ".." || strings.ContainsAny(file.Name, "/\x00") {
		return nil, "", fmt.Errorf("%q cannot be the name of a script", file.Name)
	}
	script := &Script{Path: scriptDir + "/" + file.Name, Data: []byte(data)}
	return &Run{Argv: []string{script.Path}, Script: script}, note, nil
}

func firstLine(text string) string {
	text = strings.TrimSpace(text)
	first, rest, _ := strings.Cut(text, "\n")
	if rest != "" {
		first = strings.TrimSuffix(first, "\r") + "..."
	}
	return oneLine(first, maxShown/2)
}
