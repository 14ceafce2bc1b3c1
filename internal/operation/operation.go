// Package operation keeps the daemon's long-running jobs: begun once, watched by anybody, cancelled, and remembered for a
// while after they have ended, so that a client that lost its connection still gets the outcome.
//
// An operation is one party's interest in a job. Parties that begin the same job (by key) while it runs share it, each
// with an operation of its own: the job goes on until the last of them has given up.
package operation

import (
	"context"
	"slices"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/vm"
)

// Limits of what is remembered of operations that have ended.
const (
	keepEnded = 200
	keepFor   = time.Hour
)

// watchInterval is the least time between two reports to a watcher, but for the last one.
const watchInterval = 100 * time.Millisecond

// State of an operation.
type State string

// The states. The strings are part of the wire.
const (
	Running   State = "running"
	Done      State = "done"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// ErrCancelled is the cause with which a job's context ends when nobody wants it any more.
var ErrCancelled = fault.New(fault.Cancelled, "the operation was cancelled")

// Job is the work itself. It returns after it has undone what it leaves unfinished.
type Job[T any] func(ctx context.Context, report progress.Func) (T, error)

// Spec names a job.
type Spec struct {
	Kind   string // "vm.create"
	Target string // what it works on, for people
	// Key is what makes two jobs the same; empty: this one is never shared.
	Key string
}

// Snapshot is an operation at one moment.
type Snapshot[T any] struct {
	ID       string
	Spec     Spec
	State    State
	Progress progress.Update
	Result   T     // when Done
	Err      error // when Failed or Cancelled
	Started  time.Time
	Ended    time.Time // zero while Running
}

// Registry holds operations. Make one with New.
type Registry[T any] struct {
	ctx    context.Context // parent of every job
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // one for each job

	mu     sync.Mutex         // guards the fields below, and the fields of every op and job
	closed bool               // no job may begin any more
	ops    []*op[T]           // in the order they were begun
	shared map[string]*job[T] // running jobs with a key that can still be joined
	logged []*journal         // of the jobs that ended last
}

type job[T any] struct {
	log      *journal // fixed; nil: it writes none
	cancel   context.CancelCauseFunc
	parties  map[*op[T]]bool // who still wants it
	progress progress.Update
	stages   []progress.Update // the latest of each stage, in the order in which the stages began
}

// take takes a report in. The registry's mu is held.
func (j *job[T]) take(u progress.Update) {
	j.progress = u
	for i := range j.stages {
		if j.stages[i].Stage == u.Stage {
			j.stages[i] = u
			return
		}
	}
	j.stages = append(j.stages, u)
}

// news returns what sent has not seen of each stage, the latest report last, and notes it there. Stages go on side by
// side: of each one the last word must arrive, however often the others speak. The registry's mu is held.
func (j *job[T]) news(sent map[string]progress.Update) (news []progress.Update) {
	for _, u := range j.stages {
		if sent[u.Stage] != u && u != j.progress {
			news = append(news, u)
		}
		sent[u.Stage] = u
	}
	return append(news, j.progress)
}

type op[T any] struct {
	snapshot Snapshot[T]
	job      *job[T]
	hidden   bool          // begun by Share: not listed
	changed  chan struct{} // closed at the next change; made by whoever waits for it
}

// New returns an empty registry.
func New[T any]() *Registry[T] {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Registry[T]{ctx: ctx, cancel: cancel, shared: make(map[string]*job[T])}
}

// Begin starts the job, or joins the one with the same key that runs already, and returns the operation's id.
func (r *Registry[T]) Begin(spec Spec, do Job[T]) (id string, err error) {
	o, err := r.begin(spec, do, nil, false)
	if err != nil {
		return "", err
	}
	return o.snapshot.ID, nil
}

// Share starts or joins a job like Begin, passes its progress on to report and waits for its end. It is for a job that
// needs the outcome of another one. When ctx ends first, this party gives up.
func (r *Registry[T]) Share(ctx context.Context, spec Spec, report progress.Func, do Job[T]) (T, error) {
	var none T
	o, err := r.begin(spec, do, nil, true)
	if err != nil {
		return none, err
	}
	sent := map[string]progress.Update{}
	for {
		r.mu.Lock()
		now, news, changed := o.snapshot, o.job.news(sent), o.wait()
		r.mu.Unlock()
		for _, u := range news {
			report.Report(u)
		}
		if now.State != Running {
			return now.Result, now.Err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			r.giveUp(o)
			// The last party waits for the job to have undone itself; others leave at once.
			last, err := r.follow(context.WithoutCancel(ctx), o, func(Snapshot[T]) error { return nil })
			if err != nil || last.State == Done {
				return last.Result, err
			}
			return none, context.Cause(ctx)
		}
	}
}

func (r *Registry[T]) begin(spec Spec, do Job[T], log *journal, hidden bool) (*op[T], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fault.New(fault.Unavailable, "the daemon is stopping").WithHint("banger daemon status")
	}
	r.prune()
	o := &op[T]{hidden: hidden, snapshot: Snapshot[T]{
		ID: string(vm.NewID()), Spec: spec, State: Running, Started: time.Now(),
	}}
	r.ops = append(r.ops, o)
	if j := r.shared[spec.Key]; spec.Key != "" && j != nil {
		o.job, o.snapshot.Progress = j, j.progress
		j.parties[o] = true
		return o, nil
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	j := &job[T]{log: log, cancel: cancel, parties: map[*op[T]]bool{o: true}}
	o.job = j
	if spec.Key != "" {
		r.shared[spec.Key] = j
	}
	r.wg.Go(func() { r.run(ctx, spec.Key, j, do) })
	return o, nil
}

// run runs a job and tells every party that is still there how it ended.
func (r *Registry[T]) run(ctx context.Context, key string, j *job[T], do Job[T]) {
	result, err := do(ctx, func(u progress.Update) {
		r.mu.Lock()
		defer r.mu.Unlock()
		j.take(u)
		for o := range j.parties {
			o.snapshot.Progress = u
			o.notify()
		}
	})
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx) // what the job says of its broken-off calls adds nothing
	}
	j.cancel(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shared[key] == j {
		delete(r.shared, key)
	}
	r.retire(j)
	for o := range j.parties {
		o.end(result, err)
	}
}

// Cancel gives up one operation. Its job is cancelled when no other party wants it; the operation then ends when the
// job has undone itself. One that has ended already is left as it is.
func (r *Registry[T]) Cancel(id string) (Snapshot[T], error) {
	o, err := r.find(id)
	if err != nil {
		return Snapshot[T]{}, err
	}
	r.giveUp(o)
	r.mu.Lock()
	defer r.mu.Unlock()
	return o.snapshot, nil
}

func (r *Registry[T]) giveUp(o *op[T]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.snapshot.State != Running || !o.job.parties[o] {
		return
	}
	if len(o.job.parties) > 1 {
		delete(o.job.parties, o)
		var none T
		o.end(none, ErrCancelled)
		return
	}
	// From here on nobody can join: whoever begins the same now gets a job of their own.
	if key := o.snapshot.Spec.Key; r.shared[key] == o.job {
		delete(r.shared, key)
	}
	o.job.cancel(ErrCancelled)
}

// Get returns an operation as it is now.
func (r *Registry[T]) Get(id string) (Snapshot[T], error) {
	o, err := r.find(id)
	if err != nil {
		return Snapshot[T]{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return o.snapshot, nil
}

// List returns every operation that is remembered, the oldest first.
func (r *Registry[T]) List() []Snapshot[T] {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prune()
	var list []Snapshot[T]
	for _, o := range r.ops {
		if !o.hidden {
			list = append(list, o.snapshot)
		}
	}
	return list
}

// Running is how many operations run, those of Share not counted.
func (r *Registry[T]) Running() int {
	return len(slices.DeleteFunc(r.List(), func(s Snapshot[T]) bool { return s.State != Running }))
}

// Watch calls send with the operation as it is now, then after each change, but at most every 100 ms, and at last with
// its end. It returns the first error of send, or the context's.
func (r *Registry[T]) Watch(ctx context.Context, id string, send func(Snapshot[T]) error) error {
	o, err := r.find(id)
	if err != nil {
		return err
	}
	_, err = r.follow(ctx, o, send)
	return err
}

func (r *Registry[T]) follow(ctx context.Context, o *op[T], send func(Snapshot[T]) error) (Snapshot[T], error) {
	sent := map[string]progress.Update{}
	for {
		r.mu.Lock()
		now, news, changed := o.snapshot, o.job.news(sent), o.wait()
		r.mu.Unlock()
		for _, u := range news[:len(news)-1] { // the last one is in now
			before := Snapshot[T]{ID: now.ID, Spec: now.Spec, State: Running, Progress: u, Started: now.Started}
			if err := send(before); err != nil {
				return now, err
			}
		}
		if err := send(now); err != nil || now.State != Running {
			return now, err
		}
		if err := r.pause(ctx, o, changed); err != nil {
			return now, err
		}
	}
}

// pause returns after the next change and no sooner than watchInterval from now, unless that change is the end.
func (r *Registry[T]) pause(ctx context.Context, o *op[T], changed <-chan struct{}) error {
	timer := time.NewTimer(watchInterval)
	defer timer.Stop()
	due, dirty := timer.C, false
	for due != nil || !dirty {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-due:
			due = nil
		case <-changed:
			dirty = true
			r.mu.Lock()
			state := o.snapshot.State
			changed = o.wait()
			r.mu.Unlock()
			if state != Running {
				return nil
			}
		}
	}
	return nil
}

// Close refuses new jobs, cancels those that run with the given cause and waits until they have undone themselves, or
// until ctx ends.
func (r *Registry[T]) Close(ctx context.Context, cause error) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel(cause)
	ended := make(chan struct{})
	go func() { // ends with the last job
		defer close(ended)
		r.wg.Wait()
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// CloseIfIdle refuses new jobs from now on and returns true, unless one runs.
func (r *Registry[T]) CloseIfIdle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.ops {
		if o.snapshot.State == Running {
			return false
		}
	}
	r.closed = true
	return true
}

func (r *Registry[T]) find(id string) (*op[T], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.ops {
		if o.snapshot.ID == id {
			return o, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no operation has the id %q; those that ended long ago, or with an earlier daemon, are forgotten", id)
}

// prune forgets what ended long ago, and the oldest of too many. mu is held.
func (r *Registry[T]) prune() {
	ended := 0
	for _, o := range r.ops {
		if o.snapshot.State != Running {
			ended++
		}
	}
	horizon := time.Now().Add(-keepFor)
	r.ops = slices.DeleteFunc(r.ops, func(o *op[T]) bool {
		if o.snapshot.State == Running {
			return false
		}
		if ended > keepEnded || o.hidden || o.snapshot.Ended.Before(horizon) {
			ended--
			return true
		}
		return false
	})
}

// wait returns a channel that is closed at the next change. The registry's mu is held.
func (o *op[T]) wait() <-chan struct{} {
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.changed
}

// notify wakes who waits. The registry's mu is held.
func (o *op[T]) notify() {
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

// end records the outcome. The registry's mu is held.
func (o *op[T]) end(result T, err error) {
	s := &o.snapshot
	s.Ended = time.Now()
	switch {
	case err == nil:
		s.State, s.Result = Done, result
	case fault.Is(err, fault.Cancelled):
		s.State, s.Err = Cancelled, err
	default:
		s.State, s.Err = Failed, err
	}
	o.notify()
}
