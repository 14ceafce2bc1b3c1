package template

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/agentwire"
	"banger/internal/fault"
	"banger/internal/guest"
	"banger/internal/hypervisor"
)

// Preparation is what a template has beyond a waiting agent. Its guest has mounted an image and a disk of its own, which is
// new, and waits with everything but its identity: a VM that is started from it gets a copy of that disk and a Wake.
// It saves what takes longest of a start, mounting. Nothing of the image has run in it.
//
// Such a template serves the first start of VMs with one image, one size of disk and one default user; the shape in
// its Request has to say so.
type Preparation struct {
	Image string // for people
	// Disk makes a new disk: that of the machine's that can be written to.
	Disk func(ctx context.Context, path string) error
	// Guest is the guest's configuration, with an identity that no VM keeps. The clock and entropy are filled in.
	Guest agentwire.Config
	// Identity is the same identity once more; a VM's first Wake then only has to change it.
	Identity agentwire.Identity
}

// prepareDeadline is how long configuring may take, in the background of a busy host and under software emulation.
const prepareDeadline = 2 * time.Minute

// preparedMachine is the machine of a prepared template.
func (r Request) preparedMachine(run, dir, memory string) hypervisor.Spec {
	spec := r.Spec
	spec.ID, spec.Name, spec.RunDir, spec.MemoryFile, spec.Restore = "template", "template", run, memory, nil
	spec.Console, spec.Log, spec.Halted = io.Discard, io.Discard, nil
	spec.Disks = slices.Clone(spec.Disks)
	for i := range spec.Disks {
		if !spec.Disks[i].ReadOnly {
			spec.Disks[i].Path = filepath.Join(dir, diskFile)
		}
	}
	return spec
}

// newDisk makes the disk of a prepared template, in the place of one that an attempt before has used.
func (r Request) newDisk(ctx context.Context, spec hypervisor.Spec) error {
	if r.Prepare == nil {
		return nil
	}
	for _, disk := range spec.Disks {
		if disk.ReadOnly {
			continue
		}
		if err := os.Remove(disk.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := r.Prepare.Disk(ctx, disk.Path); err != nil {
			return err
		}
	}
	return nil
}

// prepare configures the guest of a prepared template, and leaves an agent that waits for the next host.
func (r Request) prepare(ctx context.Context, m hypervisor.Machine) error {
	if r.Prepare == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, prepareDeadline)
	defer cancel()
	client, hangUp, err := r.connect(ctx, m)
	if err != nil {
		return err
	}
	defer hangUp()
	config, now := r.Prepare.Guest, time.Now
	config.Entropy, config.UnixNano = entropy(), now().UnixNano()
	if _, err := client.Configure(ctx, config); err != nil {
		return err
	}
	wake := agentwire.Wake{
		Entropy: entropy(), UnixNano: now().UnixNano(), Identity: &r.Prepare.Identity, Settings: &agentwire.Settings{User: config.User},
	}
	if err := client.Wake(ctx, wake); err != nil {
		return err
	}
	return client.Rehearse(ctx)
}

func entropy() []byte {
	b := make([]byte, 64)
	rand.Read(b) // never fails
	return b
}

// connect makes a session with the agent.
func (r Request) connect(ctx context.Context, m hypervisor.Machine) (client *guest.Client, hangUp func(), err error) {
	if !r.Driver.Features().MuxedAgent {
		return guest.NewClient(streams{m}), func() {}, nil
	}
	conn, err := m.ConnectAgent(ctx)
	if err != nil {
		return nil, nil, err
	}
	mux, err := guest.ConnectMux(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	return guest.NewClient(mux), func() { _ = mux.Close() }, nil
}

// describeDisk adds the disk of a prepared template to its metadata, once it is durable.
func (r Request) describeDisk(dir string, meta *Meta) error {
	if r.Prepare == nil {
		return nil
	}
	disk, err := os.OpenFile(filepath.Join(dir, diskFile), os.O_RDWR, 0)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "disk of the template")
	}
	defer func() { _ = disk.Close() }()
	if err := disk.Sync(); err != nil {
		return err
	}
	info, err := disk.Stat()
	if err != nil {
		return err
	}
	meta.Image, meta.DiskSize, meta.DiskMTime = r.Prepare.Image, info.Size(), info.ModTime().UnixNano()
	return nil
}
