package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/paths"
	bangerv1 "banger/proto/banger/v1"
)

// template saves a machine of the rig's shape whose agent waits.
func (r *rig) template() *hypervisor.Saved {
	return r.templateOf(func(hypervisor.Machine) error { return nil })
}

// prepared saves one whose guest was configured as somebody else's.
func (r *rig) prepared() *hypervisor.Saved {
	return r.templateOf(func(m hypervisor.Machine) error {
		conn, err := m.ConnectAgent(r.t.Context())
		if err != nil {
			return err
		}
		mux, err := guest.ConnectMux(r.t.Context(), conn)
		if err != nil {
			return err
		}
		config := r.launch.Guest
		config.Hostname, config.Env = "x", []string{"WHO=nobody"}
		_, err = guest.NewClient(mux).Configure(r.t.Context(), config)
		return errors.Join(err, mux.Close())
	})
}

func (r *rig) templateOf(prepare func(hypervisor.Machine) error) *hypervisor.Saved {
	r.t.Helper()
	kernel, run := r.dir.Path("vmlinux"), filepath.Join(r.launch.Paths.Run, "t")
	if err := errors.Join(os.WriteFile(kernel, nil, 0o600), os.Mkdir(run, 0o700)); err != nil {
		r.t.Fatal(err)
	}
	defer os.RemoveAll(run)
	m, err := fakevmm.New(fakevmm.Options{}).Start(r.t.Context(), hypervisor.Spec{
		ID: "template", Name: "template", CPUs: 1, Memory: 256 << 20, Kernel: kernel, Disks: r.launch.Machine.Disks, RunDir: run,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := prepare(m); err != nil {
		r.t.Fatal(err)
	}
	saved := &hypervisor.Saved{Memory: r.dir.Path("memory"), State: r.dir.Path("state")}
	if _, err := m.(hypervisor.Saver).Save(r.t.Context(), *saved, hypervisor.SaveOptions{Stay: true}); err != nil {
		r.t.Fatal(err)
	}
	if err := m.Signal(int(syscall.SIGKILL)); err != nil {
		r.t.Fatal(err)
	}
	<-m.Done()
	return saved
}

// A VM that starts from a prepared template is woken as itself, with its own settings. When that fails it is booted.
func TestStartFromPreparedTemplate(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*hypervisor.Saved) error
		from  bool
	}{
		"good":            {from: true},
		"another machine": {spoil: func(s *hypervisor.Saved) error { return os.WriteFile(s.State, []byte("{}"), 0o600) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, untouched := stepRig(t)
			r.launch.Template, r.launch.TemplateKey, r.launch.Prepared = r.prepared(), "aaaa", true
			r.launch.Guest.Env = []string{"WHO=me"}
			if tc.spoil != nil {
				if err := tc.spoil(r.launch.Template); err != nil {
					t.Fatal(err)
				}
			}
			sup := r.spawn()
			if st := r.status(); st.GetFromTemplate() != tc.from || (st.GetTemplateFault() == "") != tc.from {
				t.Errorf("status %v", st)
			}
			if out, code := r.exec(&bangerv1.ExecStart{Argv: []string{"sh", "-c", "echo $WHO"}}); out != "me\n" || code != 0 {
				t.Errorf("exec: %q %d", out, code)
			}
			log, err := os.ReadFile(r.dir.Path(paths.VMConsole))
			if woken := strings.Contains(string(log), "woken as "+r.launch.Guest.Hostname); err != nil || woken != tc.from {
				t.Errorf("console %q, %v", log, err)
			}
			if _, err := r.stop(false, 0); err != nil {
				t.Error(err)
			}
			sup.wait(t)
			r.clean()
			untouched()
		})
	}
}

// A VM starts from its template. When that fails it is booted, and its status says why.
func TestStartFromTemplate(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*hypervisor.Saved) error
		noted string // by the daemon
		from  bool
		fault string
	}{
		"good":               {from: true},
		"good, but made now": {noted: "it was made anew", from: true, fault: "it was made anew"},
		"another machine": {
			spoil: func(s *hypervisor.Saved) error { return os.WriteFile(s.State, []byte("{}"), 0o600) },
			fault: "the saved machine is another one",
		},
		"gone": {spoil: func(s *hypervisor.Saved) error { return os.Remove(s.State) }, fault: "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, untouched := stepRig(t)
			r.launch.Template, r.launch.TemplateKey, r.launch.TemplateFault = r.template(), "aaaa", tc.noted
			if tc.spoil != nil {
				if err := tc.spoil(r.launch.Template); err != nil {
					t.Fatal(err)
				}
			}
			sup := r.spawn()
			if st := r.status(); st.GetFromTemplate() != tc.from || !strings.Contains(st.GetTemplateFault(), tc.fault) || (tc.fault == "") != (st.GetTemplateFault() == "") {
				t.Errorf("status %v", st)
			}
			if out, code := r.exec(&bangerv1.ExecStart{Argv: []string{"echo", "hello"}}); out != "hello\n" || code != 0 {
				t.Errorf("exec: %q %d", out, code)
			}
			if _, err := r.stop(false, 0); err != nil {
				t.Error(err)
			}
			sup.wait(t)
			r.clean()
			untouched()
		})
	}
}
