package cli

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

const (
	lookEvery   = 2 * time.Second // for VMs that came and went
	keepSamples = 120             // of each VM
)

// meter is one VM that is watched.
type meter struct {
	vm      *bangerv1.VM
	samples []*bangerv1.Sample
	fresh   bool // has a sample that was not printed yet
	running bool // something listens to its supervisor
}

// statsWatch listens to the supervisors of VMs.
type statsWatch struct {
	opts statsOptions
	wg   sync.WaitGroup

	mu     sync.Mutex        // guards the fields below and the meters
	meters map[string]*meter // by id
	order  []string
	lost   bool // the daemon does not answer
}

func runStatsWatch(ctx context.Context, opts statsOptions, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	w := &statsWatch{opts: opts, meters: map[string]*meter{}}
	vms, err := opts.watched(ctx, c, true)
	if err != nil {
		c.Close()
		return err
	}
	if len(opts.refs) > 0 { // by id from here on: a name may be another VM's later
		w.opts.refs = views(vms, (*bangerv1.VM).GetId)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer w.wg.Wait()
	defer cancel(nil)
	w.take(ctx, c, vms)
	w.wg.Go(func() { cancel(w.look(ctx, d, c)) })
	if d.Term.Live() {
		return endOfLog(ctx, w.draw(ctx, d))
	}
	return endOfLog(ctx, w.print(ctx, d))
}

// look asks again and again which VMs there are, until ctx ends or all that were named are gone. It starts no daemon:
// what is shown comes from supervisors.
func (w *statsWatch) look(ctx context.Context, d *Deps, c *client.Client) error {
	defer func() { c.Close() }()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lookEvery):
		}
		vms, err := w.opts.watched(ctx, c, false)
		if fault.Is(err, fault.Unavailable) {
			if again, attachErr := d.Attach(ctx); attachErr == nil {
				c.Close()
				c = again
				vms, err = w.opts.watched(ctx, c, false)
			}
		}
		w.mu.Lock()
		w.lost = err != nil
		w.mu.Unlock()
		if err != nil {
			continue
		}
		if len(vms) == 0 && len(w.opts.refs) > 0 {
			return fault.New(fault.NotFound, "no vm is left to watch").WithHint("banger vm list")
		}
		w.take(ctx, c, vms)
	}
}

// take makes vms the ones that are watched.
func (w *statsWatch) take(ctx context.Context, c *client.Client, vms []*bangerv1.VM) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order = w.order[:0]
	there := make(map[string]bool)
	for _, m := range vms {
		id := m.GetId()
		if there[id] {
			continue
		}
		there[id] = true
		w.order = append(w.order, id)
		if w.meters[id] == nil {
			w.meters[id] = &meter{}
		}
		mt := w.meters[id]
		mt.vm = m
		if live := vm.State(m.GetState()).Live(); live && !mt.running {
			mt.running = true
			w.wg.Go(func() { w.listen(ctx, c, mt, id) })
		}
	}
	for id, mt := range w.meters {
		if !there[id] && !mt.running {
			delete(w.meters, id)
		}
	}
}

// listen takes samples in until the VM has ended.
func (w *statsWatch) listen(ctx context.Context, c *client.Client, mt *meter, id string) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		mt.running, mt.samples = false, nil
	}()
	where, err := message(c.VMs.Endpoint(ctx, connect.NewRequest(&bangerv1.EndpointRequest{Ref: id})))
	if err != nil || where.GetSocket() == "" {
		return
	}
	sup := vmclient.New(where.GetSocket())
	defer sup.Close()
	history, err := sup.Stats(ctx, keepSamples)
	if err != nil {
		return
	}
	for _, s := range history {
		w.add(mt, s)
	}
	_ = sup.WatchStats(ctx, w.opts.interval, func(s *bangerv1.Sample) error { // look tells what has become of the VM
		w.add(mt, s)
		return nil
	})
}

func (w *statsWatch) add(mt *meter, s *bangerv1.Sample) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(mt.samples); n > 0 && s.GetAtMs() <= mt.samples[n-1].GetAtMs() {
		return
	}
	mt.samples = append(mt.samples, s)
	if extra := len(mt.samples) - keepSamples; extra > 0 {
		mt.samples = append(mt.samples[:0:0], mt.samples[extra:]...)
	}
	mt.fresh = true
}

// print writes a line for each VM with news at every interval: as text, or as JSON.
func (w *statsWatch) print(ctx context.Context, d *Deps) error {
	columns := append([]term.Column{{Title: "TIME", Least: len("15:04:05")}}, usageColumns()[:7]...)
	columns[1].Least = 12
	rows := d.Term.Rows(columns)
	tick := time.NewTicker(w.opts.interval)
	defer tick.Stop()
	for first := true; ; first = false {
		if first && !d.Term.JSON() {
			if err := rows.Header(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		for _, u := range w.news() {
			var err error
			if d.Term.JSON() {
				err = d.Term.WriteJSONLine(u.view())
			} else {
				when := time.UnixMilli(u.now.GetAtMs()).Format(time.TimeOnly)
				err = rows.Row(append([]string{when}, u.cells()[:7]...)...)
			}
			if err != nil {
				return err
			}
		}
	}
}

// news returns what VMs with a new sample use.
func (w *statsWatch) news() (out []usage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.order {
		if mt := w.meters[id]; mt.fresh && len(mt.samples) > 0 {
			mt.fresh = false
			out = append(out, usageOf(mt.vm, mt.samples))
		}
	}
	return out
}

// draw shows a screen until ctx ends.
func (w *statsWatch) draw(ctx context.Context, d *Deps) error {
	screen := d.Term.Screen()
	defer screen.Close()
	window, stop, goOn := make(chan os.Signal, 1), make(chan os.Signal, 1), make(chan os.Signal, 1)
	for ch, sig := range map[chan os.Signal]os.Signal{window: syscall.SIGWINCH, stop: syscall.SIGTSTP, goOn: syscall.SIGCONT} {
		signal.Notify(ch, sig)
		defer signal.Stop(ch)
	}
	tick := time.NewTicker(min(w.opts.interval, time.Second))
	defer tick.Stop()
	soon := time.After(minInterval) // until the first samples are there
	for {
		rows, _ := screen.Size()
		if err := screen.Draw(w.lines(d.Term, rows, time.Now())); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		case <-soon:
		case <-window:
		case <-goOn: // it was stopped by force, and the terminal may have been used meanwhile
			screen.Leave()
		case <-stop:
			screen.Leave()
			if err := halt(ctx, goOn); err != nil {
				return err
			}
		}
	}
}

// halt stops the process until it is told to go on.
func halt(ctx context.Context, goOn <-chan os.Signal) error {
	select {
	case <-goOn: // of an earlier time
	default:
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		return fault.Wrap(fault.Internal, err, "stop banger")
	}
	// The stop may take a moment to reach this thread, which must not draw any more.
	select {
	case <-ctx.Done():
	case <-goOn:
	}
	return nil
}

// lines is the screen: a line about all, the table, and a line for what does not fit.
func (w *statsWatch) lines(t *term.Term, rows int, now time.Time) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	table := term.Table{Columns: usageColumns()}
	cols, title, width, wide := t.Width(), "HISTORY", 8, 0
	switch {
	case cols >= 160:
		title, width, wide = "CPU HISTORY", 30, 20
	case cols >= 110:
		title, width = "CPU HISTORY", 16
	}
	table.Columns = append(table.Columns[:2:2], append([]term.Column{
		{Title: title, Fixed: true, Least: width, Rank: 4},
	}, table.Columns[2:]...)...)
	if wide > 0 {
		table.Columns = append(table.Columns, term.Column{Title: "MEMORY HISTORY", Fixed: true, Least: wide, Rank: 11})
	}
	cpu := 0.0
	for _, id := range w.order {
		mt := w.meters[id]
		u := usageOf(mt.vm, mt.samples)
		if !math.IsNaN(u.cpu) {
			cpu += u.cpu
		}
		cells := u.cells()
		row := append(append(cells[:2:2], t.Spark(cpuHistory(mt), width, 100*float64(mt.vm.GetSpec().GetCpus()))), cells[2:]...)
		if wide > 0 {
			row = append(row, t.Spark(memoryHistory(mt), wide, 1))
		}
		table.Rows = append(table.Rows, row)
	}
	return w.frame(t, table, rows, cpu, now)
}

// frame puts the lines above and below the table. mu is held.
func (w *statsWatch) frame(t *term.Term, table term.Table, rows int, cpu float64, now time.Time) []string {
	vms := strconv.Itoa(len(table.Rows)) + " vms"
	if len(table.Rows) == 1 {
		vms = "1 vm"
	}
	head := fmt.Sprintf("%s  %s, CPU %s", now.Format(time.TimeOnly), vms, percent(cpu))
	if w.lost {
		head += "  (the daemon does not answer)"
	}
	const quit = "^C ends"
	if room := t.Width() - len(head) - len(quit); room > 2 {
		head += fmt.Sprintf("%*s", room+len(quit), quit)
	}
	body := t.Lines(table)
	if len(table.Rows) == 0 {
		body = []string{"no vm runs"}
	}
	if room := max(rows-1, 2); len(body) > room {
		hidden := len(body) - (room - 1)
		body = append(body[:room-1:room-1], fmt.Sprintf("%d more do not fit", hidden))
	}
	return append([]string{head[:min(len(head), max(t.Width(), 1))]}, body...)
}

// cpuHistory is the rate between each two samples.
func cpuHistory(mt *meter) (values []float64) {
	for i := 1; i < len(mt.samples); i++ {
		values = append(values, usageOf(mt.vm, mt.samples[i-1:i+1]).cpu)
	}
	return values
}

// memoryHistory is the share of the guest's memory that was in use.
func memoryHistory(mt *meter) (values []float64) {
	for _, s := range mt.samples {
		if s.GetGuestMemoryTotalBytes() == 0 {
			values = append(values, math.NaN())
			continue
		}
		values = append(values, float64(s.GetGuestMemoryUsedBytes())/float64(s.GetGuestMemoryTotalBytes()))
	}
	return values
}
