package vmclient

import "sync"

// credit bounds how much input is on its way to a command that has not been consumed yet. It keeps the stream free for
// what has to get through although the command does not read: signals, sizes, the end of the input. The zero credit
// bounds nothing.
type credit struct {
	mu      sync.Mutex // guards the fields below
	bounded bool
	ended   bool
	left    int64
	more    chan struct{} // closed when there is more of it; made by whoever waits
}

// begin sets the bound; 0 means none.
func (c *credit) begin(window int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bounded, c.left = window > 0, c.left+window
}

// give adds what was consumed.
func (c *credit) give(n int64) {
	if n <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left += n
	c.wake()
}

// spend takes what was sent.
func (c *credit) spend(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left -= int64(n)
}

// end lets go of whoever waits.
func (c *credit) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.wake()
}

func (c *credit) wake() {
	if c.more != nil {
		close(c.more)
		c.more = nil
	}
}

// wait returns how much may be sent, at most want; ok is false after end.
func (c *credit) wait(want int) (room int, ok bool) {
	for {
		c.mu.Lock()
		if c.ended || !c.bounded || c.left > 0 {
			defer c.mu.Unlock()
			if c.bounded {
				want = int(min(int64(want), c.left))
			}
			return want, !c.ended
		}
		if c.more == nil {
			c.more = make(chan struct{})
		}
		more := c.more
		c.mu.Unlock()
		<-more
	}
}
