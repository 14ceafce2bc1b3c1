package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/config"
	"banger/internal/fault"
	"banger/internal/term"
)

// newConfig is the group of the commands about the configuration. None of them needs the daemon.
func newConfig(d *Deps) *cobra.Command {
	cmd := group("config", "Settings of this user",
		"Show and change the settings of this user. They are in one TOML file, in which every key may be left out. A daemon that\nruns takes changes over when it starts the next time.")
	cmd.Example = "  banger config show\n  banger config set defaults.memory 2G"
	cmd.AddCommand(newConfigShow(d), newConfigPath(d), newConfigInit(d), newConfigSet(d))
	return cmd
}

func newConfigShow(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show every setting", Long: "Show every setting, its value, and whether that is the default or from which line of the file it is.",
		Example: "  banger config show\n  banger config show --format json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			settings, err := config.Show(d.Paths.ConfigFile())
			if err != nil {
				return err
			}
			return d.answerSettings(settings)
		},
	}
}

func (d *Deps) answerSettings(settings []config.Setting) error {
	if d.Term.JSON() {
		return d.Term.WriteJSON(append([]config.Setting{}, settings...))
	}
	table := term.Table{Columns: []term.Column{{Title: "KEY", Fixed: true}, {Title: "VALUE"}, {Title: "FROM", Fixed: true}, {Title: "WHAT"}}}
	for _, s := range settings {
		from := "default"
		if s.Line > 0 {
			from = "line " + strconv.Itoa(s.Line)
		}
		table.Rows = append(table.Rows, []string{s.Key, orDash(s.Value), from, s.Comment})
	}
	return d.Term.Table(table)
}

// configPathView is the JSON form of config path and init.
type configPathView struct {
	Path string `json:"path"`
}

func newConfigPath(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "path", Short: "Print where the file is", Long: "Print where the file is, or would be.",
		Example: "  banger config path",
		Args:    noArgs,
		RunE:    func(*cobra.Command, []string) error { return d.answerConfigPath() },
	}
}

func (d *Deps) answerConfigPath() error {
	if d.Term.JSON() {
		return d.Term.WriteJSON(configPathView{d.Paths.ConfigFile()})
	}
	return d.Term.Answer("%s", d.Paths.ConfigFile())
}

func newConfigInit(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Write a file to start from",
		Long:    "Write a file in which every setting is explained and commented out. A file that is there is left as it is, and refused.",
		Example: "  banger config init",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := config.Init(d.Paths.ConfigFile()); err != nil {
				return err
			}
			return d.answerConfigPath()
		},
	}
}

func newConfigSet(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "set KEY VALUE", Short: "Change a setting",
		Long:    "Change one setting in the file and leave the rest of it as it is. A value that is not possible is refused.",
		Example: "  banger config set defaults.memory 2G\n  banger config set vmm.accelerator tcg",
		Args: func(cmd *cobra.Command, args []string) error {
			if key, value, ok := strings.Cut(strings.Join(args, ""), "="); ok && len(args) == 1 {
				return fault.New(fault.Invalid, "%s takes a key and a value", cmd.CommandPath()).WithHint("%s %s %s", cmd.CommandPath(), key, value)
			}
			if len(args) != 2 {
				return fault.New(fault.Invalid, "%s takes a key and a value", cmd.CommandPath()).WithHint("banger config show")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runConfigSet(cmd, args[0], args[1], d) },
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			settings, err := config.Show(d.Paths.ConfigFile())
			if err != nil || len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return views(settings, func(s config.Setting) string { return cobra.CompletionWithDesc(s.Key, s.Comment) }), cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func runConfigSet(cmd *cobra.Command, key, value string, d *Deps) error {
	path := d.Paths.ConfigFile()
	if err := config.Set(path, key, value); err != nil {
		return err
	}
	settings, err := config.Show(path)
	if err != nil {
		return err
	}
	for _, s := range settings {
		if s.Key != key {
			continue
		}
		if d.Term.JSON() {
			err = d.Term.WriteJSON(s)
		} else {
			err = d.Term.Answer("%s = %s", s.Key, s.Value)
		}
	}
	if c, attachErr := d.Attach(cmd.Context()); err == nil && attachErr == nil {
		c.Close()
		d.Term.Note("the daemon that runs takes it over when it starts the next time")
		d.Term.Hint("banger daemon stop")
	}
	return err
}
