package daemon

import (
	"context"
	"time"

	"banger/internal/fault"
	"banger/internal/store"
)

// corruptStamp is the time in the name of a database that was moved aside.
const corruptStamp = "20060102-150405"

// openStore opens the database. One that cannot be read any more is moved aside: what it knew is made anew from the VMs'
// directories. One that must not be touched (of a newer banger, of another program) stays where it is.
func (d *Daemon) openStore(ctx context.Context) (*store.Store, error) {
	path := d.cfg.Paths.Database()
	db, err := store.Open(ctx, path)
	if !store.IsDamaged(err) {
		return db, err
	}
	aside, moveErr := store.MoveAside(path, time.Now().UTC().Format(corruptStamp))
	if moveErr != nil {
		return nil, moveErr
	}
	d.log.Error("the database is damaged; it was moved aside and is made anew from the vm directories", "error", err, "aside", aside)
	return store.Open(ctx, path)
}

// closeStore closes the database. If somebody has removed its file meanwhile it is written anew, so that nothing is lost.
func (d *Daemon) closeStore(db *store.Store) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	rescued, err := db.Rescue(ctx)
	switch {
	case err != nil:
		// Not the end of the world: the next daemon makes it anew from the directories.
		d.log.Error("cannot write the removed database anew", "error", err)
	case rescued:
		d.log.Warn("the database was removed while it was in use and has been written anew")
	}
	return db.Close()
}

// guard ends the daemon when its database is not what is found at its path any more. Going on would mean to write into
// a file that nobody finds again.
func (p *parts) guard(context.Context) {
	if err := p.store.CheckFile(); err != nil {
		p.daemon.log.Error("the daemon ends, so that the next one starts from what is there", "error", err)
		p.daemon.stop(err)
	}
}

// every does something again and again until the daemon stops. It belongs to the fleet's goroutines.
func (f *fleet) every(period time.Duration, do func(context.Context)) {
	f.wg.Go(func() {
		ticker := time.NewTicker(period)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				do(f.ctx)
			case <-f.stopping:
				return
			case <-f.ctx.Done():
				return
			}
		}
	})
}

// loops begins what the daemon does by itself.
func (p *parts) loops() {
	times := p.daemon.cfg.Times
	p.fleet.every(times.Guard, p.guard)
	p.fleet.every(times.Poll, p.fleet.poll)
	p.fleet.every(times.Reconcile, func(ctx context.Context) {
		if err := p.fleet.reconcile(ctx, false); err != nil && ctx.Err() == nil {
			p.daemon.log.Error("cannot compare rows, directories and processes", "error", err)
			if store.IsDamaged(err) { // the next daemon moves it aside
				p.daemon.stop(fault.Wrap(fault.Unavailable, err, "the database cannot be used any more"))
			}
		}
	})
}
