package machine

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

const (
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	// ownBootID is mounted over bootIDFile: the kernel makes up its own once and has no way to change it.
	ownBootID = "/run/banger/boot_id"
)

// Wake implements agent.System. The clock and the random numbers come first: everything else may use them.
func (m *Machine) Wake(ctx context.Context, w agentwire.Wake) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := setClock(w.UnixNano); err != nil {
		return err
	}
	if err := addEntropy(w.Entropy); err != nil {
		return err
	}
	if w.Identity != nil {
		if err := m.becomeAnother(ctx, w.Identity); err != nil {
			return err
		}
	}
	if w.Settings != nil {
		m.makeWorkdir(w.Settings.Workdir)
	}
	return nil
}

// becomeAnother gives a guest that was configured another identity.
func (m *Machine) becomeAnother(ctx context.Context, id *agentwire.Identity) error {
	config := agentwire.Config{Hostname: id.Hostname, MachineID: id.MachineID, Network: id.Network}
	config.Disks.Image, config.Disks.Data = "-", "-" // not looked at; the check wants them
	if err := check(config); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(id.Hostname)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	for _, f := range identityFiles(config) {
		if err := amend(f.path, f.content); err != nil {
			m.Error(err.Error())
		}
	}
	if id.BootID != "" {
		if err := setBootID(id.BootID); err != nil {
			return err
		}
	}
	return m.setNetwork(ctx, id.Network)
}

// setBootID makes programs read another boot id than the one that the guest shares with the one it was made from.
func setBootID(id string) error {
	text := []byte(id + "\n")
	if sameFile(ownBootID, bootIDFile) { // mounted before; writing is less work
		return inPlace(ownBootID, text)
	}
	if err := os.MkdirAll("/run/banger", 0o755); err != nil {
		return err
	}
	_ = unix.Unmount(bootIDFile, unix.MNT_DETACH) // of a fork before
	if err := os.WriteFile(ownBootID, text, 0o444); err != nil {
		return err
	}
	if err := unix.Mount(ownBootID, bootIDFile, "", unix.MS_BIND, ""); err != nil {
		return fault.Wrap(fault.Internal, err, "set the boot id")
	}
	return nil
}

// sameFile reports whether two paths are one file.
func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	two, err := os.Stat(b)
	return err == nil && os.SameFile(one, two)
}
