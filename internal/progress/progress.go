// Package progress is how a long job tells how far it is, without knowing who listens.
package progress

import "io"

// Update is one report. Counters that are not known are 0.
type Update struct {
	Stage   string // short and stable: "kernel", "image", "boot"
	Message string // for people, lower case: "downloading linux-image-6.1.0-9-cloud-amd64"
	Done    uint64
	Total   uint64
	Unit    string // "bytes", "packages" or ""
}

// Func receives updates. It is called often and from any goroutine, and must not block. A nil Func is allowed: use
// Report.
type Func func(Update)

// Report calls f unless it is nil.
func (f Func) Report(u Update) {
	if f != nil {
		f(u)
	}
}

// Reader returns a reader that reports what has passed through r as bytes of u.Total.
func (f Func) Reader(r io.Reader, u Update) io.Reader {
	u.Unit = "bytes"
	return &reader{r: r, f: f, u: u}
}

type reader struct {
	r io.Reader
	f Func
	u Update
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.u.Done += uint64(n)
	r.f.Report(r.u)
	return n, err
}
