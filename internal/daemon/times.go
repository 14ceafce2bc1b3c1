package daemon

import "time"

// Times are the periods of what the daemon does by itself. Zero values mean the usual ones.
type Times struct {
	Guard     time.Duration // between two looks whether the database is still where it was
	Reconcile time.Duration // between two comparisons of rows, directories and processes
	Poll      time.Duration // between two questions to each supervisor when its VM was used last
	Lull      time.Duration // without the start of a VM, until something is done for later starts

	// A VM that its restart policy starts again waits for RestartFirst, twice as long after each further failure, at
	// most RestartMost. A run of Stable makes up for the failures before it.
	RestartFirst time.Duration
	RestartMost  time.Duration
	Stable       time.Duration
}

func (t *Times) fill() {
	for _, one := range []struct {
		period *time.Duration
		usual  time.Duration
	}{
		{&t.Guard, 2 * time.Second}, {&t.Reconcile, 30 * time.Second}, {&t.Poll, 10 * time.Second}, {&t.Lull, 2 * time.Second},
		{&t.RestartFirst, time.Second}, {&t.RestartMost, 5 * time.Minute}, {&t.Stable, time.Minute},
	} {
		if *one.period == 0 {
			*one.period = one.usual
		}
	}
}
