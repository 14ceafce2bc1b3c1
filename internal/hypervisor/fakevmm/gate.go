package fakevmm

import (
	"io"
	"sync"
)

// gate lets bytes through or holds them back.
type gate struct {
	mu   sync.Mutex // mu guards the field below
	open *sync.Cond
	shut bool
}

func newGate() *gate {
	g := new(gate)
	g.open = sync.NewCond(&g.mu)
	return g
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	g.open.Broadcast()
}

func (g *gate) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut {
		g.open.Wait()
	}
}

// gated is the agent channel of a machine that can be paused: what arrives meanwhile is seen afterwards, what is sent
// goes out afterwards.
type gated struct {
	io.ReadWriteCloser
	gate *gate
}

// Read implements io.Reader.
func (c gated) Read(p []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(p)
	c.gate.pass()
	return n, err
}

// Write implements io.Writer.
func (c gated) Write(p []byte) (int, error) {
	c.gate.pass()
	return c.ReadWriteCloser.Write(p)
}
