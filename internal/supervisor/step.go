package supervisor

import "banger/internal/fault"

// The named steps. Config.Step is called right before each: a test makes it fail there, or ends the process. What a
// failure means follows from the step; in every case nothing of the run is left on the host but its record and the
// disk. After a death the next supervisor of the VM puts the rest in order.
const (
	StepBootPrepare   = "boot.prepare"    // write process.json; the run directory is there
	StepBootListen    = "boot.listen"     // open the socket
	StepBootStart     = "boot.start-vmm"  // start the VMM
	StepBootRecord    = "boot.record-vmm" // record which process the VMM is
	StepBootConnect   = "boot.connect"    // connect to the agent
	StepBootConfigure = "boot.configure"  // give the guest its identity and disks
	StepBootReady     = "boot.ready"      // tell that the guest is ready
	StepPauseVMM      = "pause.vmm"       // stop the guest's CPUs
	StepPauseRecord   = "pause.record"    // tell that the guest is paused
	StepUnpauseVMM    = "unpause.vmm"     // let the guest's CPUs go on
	StepUnpauseClock  = "unpause.clock"   // set the guest's clock
	StepSaveBegin     = "save.begin"      // save memory and devices
	StepSaveSealed    = "save.sealed"     // write what the saved machine is
	StepBootWake      = "boot.wake"       // tell a guest that was saved that it runs again
	StepGrowVMM       = "grow.vmm"        // tell the VMM that the disk has grown
	StepGrowGuest     = "grow.guest"      // have the guest grow its file system
	StepStopResume    = "stop.resume"     // let a paused guest go on, so that it can shut down
	StepStopAgent     = "stop.agent"      // ask the guest to shut down
	StepStopQuit      = "stop.quit"       // tell the VMM to quit
	StepStopTerminate = "stop.terminate"  // send it SIGTERM
	StepStopKill      = "stop.kill"       // send it SIGKILL, whatever Step says
	StepStopRecord    = "stop.record"     // write exit.json
	StepStopClean     = "stop.clean"      // remove what the run had on the host, whatever Step says
)

// Steps lists the named steps.
func Steps() []string {
	return []string{
		StepBootPrepare, StepBootListen, StepBootStart, StepBootRecord, StepBootConnect, StepBootConfigure, StepBootReady,
		StepPauseVMM, StepPauseRecord, StepUnpauseVMM, StepUnpauseClock,
		StepSaveBegin, StepSaveSealed, StepBootWake, StepGrowVMM, StepGrowGuest, StepStopResume,
		StepStopAgent, StepStopQuit, StepStopTerminate, StepStopKill, StepStopRecord, StepStopClean,
	}
}

// at is called before the step of that name.
func (s *Supervisor) at(name string) error {
	if s.step == nil {
		return nil
	}
	if err := s.step(name); err != nil {
		return fault.Wrap(fault.Internal, err, "%s", name)
	}
	return nil
}
