package daemon_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	"banger/internal/rpc"
	bangerv1 "banger/proto/banger/v1"
)

// TestStress lets clients do random things with VMs that they share, and kills the daemon again and again meanwhile. In
// the end everything is in order, and every VM that was made and not removed is there with what it wrote on its disk.
// The seed is printed; BANGER_TEST_RANDOM_SEED sets it.
func TestStress(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("BANGER_TEST_RANDOM_SEED"); text != "" {
		given, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = given
	}
	t.Logf("BANGER_TEST_RANDOM_SEED=%d", seed)
	const clients, operations, kills = 6, 50, 6
	h := newHost(t)
	h.cfg.Log = nil
	kill, _ := h.process()
	var wg sync.WaitGroup
	workers := make([]*worker, clients)
	for i := range workers {
		workers[i] = &worker{h: h, clients: dial(h.paths), number: i, of: clients, random: rand.New(rand.NewPCG(seed, uint64(i)))}
		wg.Go(func() {
			for range operations {
				workers[i].operate()
			}
		})
	}
	random := rand.New(rand.NewPCG(seed, clients))
	for range kills {
		time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond)
		kill()
		kill, _ = h.process()
	}
	wg.Wait()
	kill()
	h.run()
	h.inOrder()
	worked := 0
	for _, w := range workers {
		worked += w.worked
		w.http.CloseIdleConnections()
		w.check()
	}
	if left := h.fsck(false); len(left) > 0 {
		t.Errorf("fsck: %v", left)
	}
	t.Logf("%d of %d operations succeeded", worked, clients*operations)
	if worked < clients*operations/20 {
		t.Error("nearly all operations were refused: this proves little")
	}
}

// worker is one client. It alone creates and removes its VM; everything else it does with anybody's.
type worker struct {
	clients
	h          *host
	number, of int
	random     *rand.Rand
	certain    bool // marker says whether the VM exists
	marker     string
	worked     int // operations that succeeded
}

func (w *worker) name() string { return fmt.Sprintf("vm-%d", w.number) }

func (w *worker) operate() {
	ctx, cancel := context.WithTimeout(w.h.t.Context(), 2*time.Minute)
	defer cancel()
	ref := fmt.Sprintf("vm-%d", w.random.IntN(w.of))
	var err error
	switch w.random.IntN(12) {
	case 0, 1, 2:
		err = w.create(ctx)
	case 3:
		err = w.remove(ctx)
	case 4, 5:
		_, err = w.vms.Start(ctx, connect.NewRequest(&bangerv1.StartVMRequest{Ref: ref}))
	case 6:
		_, err = w.vms.Stop(ctx, connect.NewRequest(&bangerv1.StopVMRequest{Ref: ref}))
	case 7:
		_, err = w.vms.Kill(ctx, connect.NewRequest(&bangerv1.KillVMRequest{Ref: ref}))
	case 8:
		_, err = w.vms.Pause(ctx, connect.NewRequest(&bangerv1.PauseVMRequest{Ref: ref}))
	case 9:
		_, err = w.vms.Unpause(ctx, connect.NewRequest(&bangerv1.UnpauseVMRequest{Ref: ref}))
	case 10:
		size := uint64(256+w.random.IntN(64)) << 20
		_, err = w.vms.Set(ctx, connect.NewRequest(&bangerv1.SetVMRequest{Ref: ref, DiskBytes: &size, Cpus: ptr(uint32(1 + w.random.IntN(4)))}))
	case 11:
		_, err = w.vms.Restart(ctx, connect.NewRequest(&bangerv1.RestartVMRequest{Ref: ref}))
	}
	if err == nil {
		w.worked++
	}
	if (fault.Is(err, fault.Timeout) || fault.Is(err, fault.Internal)) && !cutOff(err) {
		w.h.t.Errorf("%v", err)
	}
	if fault.Is(err, fault.Unavailable) {
		w.awaitDaemon(ctx)
	}
}

// awaitDaemon waits until a daemon answers: operations that nobody hears prove nothing.
func (w *worker) awaitDaemon(ctx context.Context) {
	for ctx.Err() == nil {
		if _, err := w.daemons.Hello(ctx, connect.NewRequest(&bangerv1.HelloRequest{})); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// cutOff reports whether a daemon was killed between the head and the body of its answer: then the status of HTTP is all
// that is known of a failure.
func cutOff(err error) bool {
	code, text, _ := strings.Cut(err.Error(), " ")
	n, _ := strconv.Atoi(code)
	return n != 0 && text == http.StatusText(n)
}

// create creates the worker's VM and writes on its disk.
func (w *worker) create(ctx context.Context) error {
	resp, err := w.vms.Create(ctx, connect.NewRequest(&bangerv1.CreateVMRequest{Spec: &bangerv1.VMSpec{Name: w.name()}, Start: w.random.IntN(2) == 0}))
	if err != nil {
		w.certain = w.certain || fault.Is(err, fault.Exists) && w.marker != ""
		return err
	}
	was := w.certain
	w.certain = false
	stream, err := w.ops.Watch(ctx, connect.NewRequest(&bangerv1.WatchOperationRequest{Id: resp.Msg.GetOperationId()}))
	if err != nil {
		return err
	}
	defer stream.Close()
	var last *bangerv1.Operation
	for stream.Receive() {
		last = stream.Msg()
	}
	if stream.Err() != nil {
		return rpc.FromConnect(stream.Err())
	}
	if f := last.GetFault(); f != nil {
		w.certain = was && w.marker == ""
		return rpc.FromProto(f)
	}
	w.certain, w.marker = true, last.GetResultId()
	return os.WriteFile(filepath.Join(w.h.paths.VM(w.marker), "disk.ext4.marker"), []byte(w.marker), 0o600)
}

func (w *worker) remove(ctx context.Context) error {
	_, err := w.vms.Remove(ctx, connect.NewRequest(&bangerv1.RemoveVMRequest{Ref: w.name(), Force: true}))
	switch {
	case err == nil:
		w.certain, w.marker = true, ""
	case !fault.Is(err, fault.NotFound):
		w.certain = false
	}
	return err
}

// check checks that the worker's VM is there, or is not.
func (w *worker) check() {
	resp, err := w.h.vms.Get(w.h.t.Context(), connect.NewRequest(&bangerv1.GetVMRequest{Ref: w.name()}))
	switch {
	case !w.certain:
	case w.marker == "" && !fault.Is(err, fault.NotFound):
		w.h.t.Errorf("%s was removed: %v, %v", w.name(), resp, err)
	case w.marker != "" && (err != nil || resp.Msg.GetId() != w.marker):
		w.h.t.Errorf("%s was made as %s: %v, %v", w.name(), w.marker, resp, err)
	case w.marker != "":
		text, err := os.ReadFile(filepath.Join(resp.Msg.GetDir(), "disk.ext4.marker"))
		if err != nil || string(text) != w.marker {
			w.h.t.Errorf("%s has lost its marker: %s, %v", w.name(), text, err)
		}
	}
}
