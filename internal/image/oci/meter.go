package oci

import (
	"fmt"
	"sync"

	"banger/internal/image/blob"
	"banger/internal/progress"
)

// meter adds up how far the layers of a pull are, and reports it: first the download of what is missing, and when all of
// it is there, how much is unpacked.
type meter struct {
	report  progress.Func
	message string // while downloading or uploading
	then    string // when every layer has landed; may be empty
	total   uint64
	size    map[*item]int64

	mu      sync.Mutex // guards the fields below, and keeps the reports in order
	done    map[*item]int64
	missing int // layers that have not landed
	read    uint64
}

// newMeter begins with what the store has.
func newMeter(report progress.Func, verb string, items []*item, store *blob.Store) *meter {
	m := &meter{report: report, then: "unpacking", done: map[*item]int64{}, size: map[*item]int64{}}
	coming := 0
	for _, it := range items {
		m.total += uint64(it.want.Size)
		m.size[it] = it.want.Size
		if size, ok := store.Stat(it.want.Digest); !ok || size != it.want.Size {
			coming++
		}
	}
	m.missing = len(items)
	m.message = verb + " " + layersWord(coming)
	return m
}

func layersWord(n int) string {
	if n == 1 {
		return "1 layer"
	}
	return fmt.Sprintf("%d layers", n)
}

// arrived returns what a download of it reports to.
func (m *meter) arrived(it *item) func(int64) {
	return func(n int64) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.done[it] = n
		m.tell()
	}
}

// landed counts a layer that is in the store.
func (m *meter) landed(it *item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done[it] = m.size[it]
	m.missing--
	m.tell()
}

// unpacked is told how many bytes of all blobs unpacking has read.
func (m *meter) unpacked(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read = uint64(n)
	if m.missing == 0 {
		m.tell()
	}
}

func (m *meter) tell() {
	u := progress.Update{Stage: "image", Message: m.message, Total: m.total, Unit: "bytes"}
	for _, n := range m.done {
		u.Done += uint64(n)
	}
	if m.missing == 0 && m.then != "" {
		u.Message, u.Done = m.then, min(m.read, m.total)
	}
	m.report.Report(u)
}
