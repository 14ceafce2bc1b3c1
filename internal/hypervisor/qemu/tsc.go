package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"banger/internal/atomicfile"
)

// A guest under software emulation reads the host's time-stamp counter but has nothing good to calibrate it with: it
// hangs in about one boot of six, or calls the counter unstable and runs on 4 ms ticks. So it is told the frequency.
// That has to be the counter's own and not the processor's present clock rate (which /proc/cpuinfo has): the guest's
// clock would go wrong by the same factor. It is measured here against the host's clock, which is good to a few parts
// per million, and kept until the next boot of the host, so that the guest's command line stays the same.

// tscFile is the cache of hostTSC, in Options.CacheDir.
const tscFile = "tsc.json"

// tscWindow is how long a measurement takes.
const tscWindow = 20 * time.Millisecond

// tscRate is a measurement.
type tscRate struct {
	Boot string `json:"boot_id"`
	KHz  uint64 `json:"khz"`
}

// hostTSC returns the frequency of the host's time-stamp counter in kHz.
func (d *Driver) hostTSC() uint64 {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	id := string(bytes.TrimSpace(boot))
	if err != nil || d.opts.CacheDir == "" {
		return measureTSC()
	}
	cache := filepath.Join(d.opts.CacheDir, tscFile)
	var known tscRate
	if err := atomicfile.ReadJSON(cache, &known); err == nil && known.Boot == id && known.KHz > 0 {
		return known.KHz
	}
	rate := tscRate{Boot: id, KHz: measureTSC()}
	// The same counter, measured anew: what was saved with the rate of before goes on to be of use.
	if old := known.KHz; old > 0 && max(old, rate.KHz)-min(old, rate.KHz) < old/1000 {
		rate.KHz = old
	}
	if err := writeCache(cache, rate); err != nil {
		d.opts.Log.Warn("the cache of the counter's rate cannot be written", "component", "qemu", "error", err)
	}
	return rate.KHz
}

// measureTSC counts ticks over tscWindow.
func measureTSC() uint64 {
	t0, c0 := sampleTSC()
	time.Sleep(tscWindow)
	t1, c1 := sampleTSC()
	return uint64(float64(c1-c0) / float64(t1.Sub(t0)) * 1e6)
}

// sampleTSC reads the clock and the counter at the same time: the best of some tries, since this thread may be
// interrupted between the two.
func sampleTSC() (at time.Time, ticks uint64) {
	best := time.Duration(1<<63 - 1)
	for range 16 {
		before := time.Now()
		c := rdtsc()
		if took := time.Since(before); took < best {
			best, at, ticks = took, before.Add(took/2), c
		}
	}
	return at, ticks
}
