// Package program is the banger program: it wires the three roles of one binary together. The command line is the role
// that people see; it starts the daemon, and the daemon starts supervisors, as processes of the same binary.
//
// What the program is made of (drivers of virtual machine monitors, where images and kernels come from) is Parts, chosen
// by the main package. Tests build the same program from other parts.
package program

import (
	"context"
	"log/slog"
	"os"
	"runtime"

	"banger/internal/cli"
	"banger/internal/client"
	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/paths"
	"banger/internal/preflight"
	"banger/internal/supervisor"
	"banger/internal/term"
	"banger/internal/userunit"
	"banger/internal/version"
	"banger/internal/vmdir"
)

// Parts are what differs between the program and the one that tests build. Functions are called by the role that needs
// the part: a command that needs none of it pays for none.
type Parts struct {
	// Drivers returns the drivers by the names that the configuration uses.
	Drivers func(Host) map[string]hypervisor.Driver
	// Images and Kernels are where they come from.
	Images, Kernels func(Host) daemon.Source
	// FormatDisk and Initramfs are as in daemon.Config.
	FormatDisk func(ctx context.Context, cacheDir string, size uint64, dst string) error
	Initramfs  func(cacheDir, kernelDir string) (path string, err error)
	// AdjustDaemon changes what the daemon is made of. It is for tests (named steps, short periods); nil otherwise.
	AdjustDaemon func(*daemon.Config)
	// Doctor checks the host.
	Doctor func(context.Context, Host) []preflight.Result
}

// Host is what parts may want to know.
type Host struct {
	Paths    paths.Paths
	Settings config.Config
	Log      *slog.Logger
}

// program is one run of it.
type program struct {
	parts    Parts
	paths    paths.Paths
	pathsErr error // told by whatever needs a path: version and help do not
	build    string
}

// Main runs the program with args (without its name) and returns the exit code.
func Main(args []string, parts Parts) int {
	p := &program{parts: parts, build: version.Build()}
	p.paths, p.pathsErr = paths.FromEnv()
	ctx, signals := cli.NewSignals(context.Background())
	defer signals.Close()
	return cli.Main(ctx, args, &cli.Deps{
		Term: term.New(term.Config{}), Signals: signals, Paths: p.paths, LookupEnv: os.LookupEnv,
		Version: cli.Version{
			Version: version.String(), Build: p.build, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH,
			Generation: client.Generation,
		},
		Connect:    p.connect,
		Attach:     p.attach,
		Stop:       p.stop,
		Unit:       p.unit,
		Doctor:     p.doctor,
		Daemon:     p.daemon,
		Supervisor: p.supervisor,
	})
}

// clientConfig says how this program reaches and starts its daemon.
func (p *program) clientConfig() (client.Config, error) {
	self, err := os.Executable()
	if err != nil {
		return client.Config{}, fault.Wrap(fault.Internal, err, "find banger's own binary")
	}
	return client.Config{Paths: p.paths, Command: []string{self, "daemon", "run"}, Env: os.Environ(), Build: p.build}, p.pathsErr
}

func (p *program) connect(ctx context.Context) (*client.Client, error) {
	cfg, err := p.clientConfig()
	if err != nil {
		return nil, err
	}
	return client.Connect(ctx, cfg)
}

func (p *program) attach(ctx context.Context) (*client.Client, error) {
	cfg, err := p.clientConfig()
	if err != nil {
		return nil, err
	}
	return client.Attach(ctx, cfg)
}

func (p *program) stop(ctx context.Context, c *client.Client) error {
	cfg, err := p.clientConfig()
	if err != nil {
		return err
	}
	return c.Stop(ctx, cfg, false)
}

// unit is this program's daemon as a service of the user.
func (p *program) unit() (userunit.Config, error) {
	self, err := os.Executable()
	if err != nil {
		return userunit.Config{}, fault.Wrap(fault.Internal, err, "find banger's own binary")
	}
	return userunit.Config{Executable: self, Env: userunit.Environment(os.Environ())}, p.pathsErr
}

// host reads the configuration. Logs go to stderr, which is a file unless somebody runs the role by hand.
func (p *program) host() (Host, error) {
	if p.pathsErr != nil {
		return Host{}, p.pathsErr
	}
	settings, err := config.Load(p.paths.ConfigFile())
	return Host{Paths: p.paths, Settings: settings, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}, err
}

// daemon runs the daemon until ctx ends or a client stops it.
func (p *program) daemon(ctx context.Context) (err error) {
	ready := daemon.ReadyFromEnv()
	defer func() { ready.Report(err) }()
	h, err := p.host()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg := daemon.Config{
		Paths: h.Paths, Build: p.build, Log: h.Log, Settings: h.Settings,
		Drivers:    p.parts.Drivers(h),
		Images:     p.parts.Images(h),
		Kernels:    p.parts.Kernels(h),
		FormatDisk: p.parts.FormatDisk, Initramfs: p.parts.Initramfs,
		SupervisorCommand: []string{self, "supervisor", "run"},
		Ready:             ready,
	}
	if p.parts.AdjustDaemon != nil {
		p.parts.AdjustDaemon(&cfg)
	}
	d, err := daemon.New(cfg)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// supervisor runs the VM in dir until it ends. It handles signals by itself: the end of the command's context must not
// mean the end of the VM.
func (p *program) supervisor(ctx context.Context, dir string) error {
	h, err := p.host()
	if err != nil {
		return err
	}
	s := supervisor.New(supervisor.Config{Dir: vmdir.Dir(dir), Drivers: p.parts.Drivers(h), Log: h.Log})
	return s.Run(context.WithoutCancel(ctx))
}

// doctor checks the host, as far as a broken configuration lets it.
func (p *program) doctor(ctx context.Context) []preflight.Result {
	h, err := p.host()
	check := preflight.Result{ID: "config", Title: "configuration", Status: preflight.OK, Detail: p.paths.ConfigFile()}
	if err != nil {
		check.Status, check.Detail, check.Hint = preflight.Fail, err.Error(), fault.HintOf(err)
		h.Paths, h.Settings = p.paths, config.Default()
	} else if _, statErr := os.Stat(p.paths.ConfigFile()); statErr != nil {
		check.Detail += " is not there: every setting has its default"
	}
	h.Log = slog.New(slog.DiscardHandler)
	return append([]preflight.Result{check}, p.parts.Doctor(ctx, h)...)
}
