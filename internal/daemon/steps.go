package daemon

import (
	"context"

	"banger/internal/daemon/builder"
	"banger/internal/daemon/library"
)

// Step names a point between two things that a path does to disk, database or processes. Tests make a daemon fail or die
// there (Config.Step), for each of Steps, and check that nothing leaked and nothing was lost.
type Step = library.Step

// The steps. Each is reached when what its comment says has been done and the next thing has not begun.
const (
	StepCreateFetched Step = "create.fetched" // image and kernel are here
	StepCreateRow     Step = "create.row"     // the name is reserved
	StepCreateDir     Step = "create.dir"     // the VM's directory exists
	StepCreateDisk    Step = "create.disk"    // its disk is formatted
	StepCreateRecord  Step = "create.record"  // vm.json is written
	StepCreateMade    Step = "create.made"    // the row says that the directory is complete

	StepStartRow     Step = "start.row"     // the row says starting
	StepStartLaunch  Step = "start.launch"  // supervisor.json is written
	StepStartSpawned Step = "start.spawned" // the supervisor was spawned
	StepStartReady   Step = "start.ready"   // the guest is ready

	StepStopRow   Step = "stop.row"   // the row says stopping
	StepStopEnded Step = "stop.ended" // the VM has ended

	StepRemoveRow   Step = "rm.row"   // the row says deleting
	StepRemoveEnded Step = "rm.ended" // nothing of the VM runs
	StepRemoveRun   Step = "rm.run"   // its sockets are gone
	StepRemoveDir   Step = "rm.dir"   // its directory is gone

	StepGrowFile  Step = "grow.file"  // the disk's file has its new size
	StepGrowGuest Step = "grow.guest" // the guest has heard of it

	StepChangeRow    Step = "change.row"    // the row has the new settings (set, rename)
	StepChangeRecord Step = "change.record" // and vm.json too

	StepResetRow    Step = "reset.row"    // the row says that the next start resets
	StepResetRecord Step = "reset.record" // and vm.json too

	StepOwnRoot    Step = "own.root"    // the root file system of a VM of the daemon's own is there, its row is not complete
	StepOwnReady   Step = "own.ready"   // the guest of one is ready
	StepPoolReady  Step = "pool.ready"  // a VM of the pool can be taken
	StepPoolNamed  Step = "pool.named"  // the guest of one that is being taken has its name
	StepPoolRecord Step = "pool.record" // and so has its directory

	StepSuspendDir   Step = "suspend.dir"   // the place for the memory is there
	StepSuspendEnded Step = "suspend.ended" // the memory is on the disk and the VM has ended

	StepSnapshotDir   Step = "snapshot.dir"   // the place for a snapshot is there, under a dot-name
	StepSnapshotSaved Step = "snapshot.saved" // its files are there
	StepSnapshotNamed Step = "snapshot.named" // it has its name

	StepRestorePrepared Step = "restore.prepared" // the new disk and memory are there, not in their places
	StepRestoreEnded    Step = "restore.ended"    // the VM does not run
	StepRestoreMemory   Step = "restore.memory"   // the new memory is in its place
	StepRestoreDisk     Step = "restore.disk"     // the new disk, too
	StepRestoreRow      Step = "restore.row"      // the row says so
	StepRestoreStarted  Step = "restore.started"  // the guest goes on, or none is to

	StepForkStaged  Step = "fork.staged"  // disk and memory of the VM that is forked are in the staging area
	StepForkRow     Step = "fork.row"     // the name of a clone is reserved
	StepForkBuilt   Step = "fork.built"   // its directory is complete, its row is not
	StepForkStarted Step = "fork.started" // all clones run; their rows are not complete
	StepForkMade    Step = "fork.made"    // they are

	StepAdoptExamined Step = "adopt.examined" // it is known what there is of a VM
	StepAdoptDone     Step = "adopt.done"     // what is to be done about it was done or begun
	StepRebuildRow    Step = "rebuild.row"    // a directory has got a row again
)

// Steps lists every step.
func Steps() []Step {
	return []Step{
		StepCreateFetched, StepCreateRow, StepCreateDir, StepCreateDisk, StepCreateRecord, StepCreateMade,
		StepStartRow, StepStartLaunch, StepStartSpawned, StepStartReady, StepStopRow, StepStopEnded,
		StepRemoveRow, StepRemoveEnded, StepRemoveRun, StepRemoveDir, StepGrowFile, StepGrowGuest,
		StepChangeRow, StepChangeRecord, StepResetRow, StepResetRecord, StepSuspendDir, StepSuspendEnded, StepOwnRoot, StepOwnReady,
		StepPoolReady, StepPoolNamed, StepPoolRecord,
		library.StepStaged, library.StepMoved, library.StepNamed, library.StepRow,
		library.StepForgetNames, library.StepForgetRow, library.StepForgetGone,
		StepSnapshotDir, StepSnapshotSaved, StepSnapshotNamed, StepRestorePrepared, StepRestoreEnded, StepRestoreMemory,
		StepRestoreDisk, StepRestoreRow, StepRestoreStarted,
		builder.StepLayer, builder.StepPacked, builder.StepExported,
		StepForkStaged, StepForkRow, StepForkBuilt, StepForkStarted, StepForkMade, StepAdoptExamined, StepAdoptDone, StepRebuildRow,
	}
}

// step is called at each of them.
func (c *Config) step(ctx context.Context, s Step) error {
	if c.Step == nil {
		return nil
	}
	return c.Step(ctx, s)
}
