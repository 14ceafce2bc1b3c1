package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

func randomBytes(n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data)
	return data
}

// origin is a place of origin that counts, and gives way when told to.
type origin struct {
	data  []byte
	opens atomic.Int32
	bytes atomic.Int64
	gate  chan struct{} // nil: open; otherwise every Read takes a token or sees it closed
	fail  error         // instead of io.EOF
}

func (o *origin) open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	o.opens.Add(1)
	return io.NopCloser(&originReader{o: o, ctx: ctx, r: bytes.NewReader(o.data[offset:])}), nil
}

type originReader struct {
	o   *origin
	ctx context.Context
	r   *bytes.Reader
}

func (r *originReader) Read(p []byte) (int, error) {
	if r.o.gate != nil {
		select {
		case <-r.o.gate:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
	n, err := r.r.Read(p[:min(len(p), 1000)])
	r.o.bytes.Add(int64(n))
	if err == io.EOF && r.o.fail != nil {
		err = r.o.fail
	}
	return n, err
}

func readAll(t *testing.T, d *Download) ([]byte, error) {
	t.Helper()
	r, err := d.Reader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestDownloadStreamsAndStores(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(100_000)
	o := &origin{data: data}
	var last atomic.Int64
	d := s.Download(Wanted{Digest: sum(data), Size: int64(len(data))}, o.open, func(n int64) { last.Store(n) })
	defer d.Close()
	if got, err := readAll(t, d); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := d.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if last.Load() != int64(len(data)) {
		t.Errorf("reported %d bytes", last.Load())
	}
	second := s.Download(Wanted{Digest: sum(data), Size: int64(len(data))}, o.open, nil)
	defer second.Close()
	if got, err := readAll(t, second); err != nil || !bytes.Equal(got, data) {
		t.Errorf("again: %d bytes, %v", len(got), err)
	}
	if n := o.opens.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
	if got := files(t, s); len(got) != 1 {
		t.Errorf("files: %q", got)
	}
}

// A reader has what is there before the rest has come.
func TestReaderReadsAlong(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(10_000)
	o := &origin{data: data, gate: make(chan struct{}, 1)}
	d := s.Download(Wanted{Digest: sum(data), Size: int64(len(data))}, o.open, nil)
	defer d.Close()
	r, err := d.Reader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o.gate <- struct{}{}
	buf := make([]byte, 1000)
	if _, err := io.ReadFull(r, buf); err != nil || !bytes.Equal(buf, data[:1000]) {
		t.Fatalf("first bytes: %v", err)
	}
	if _, ok := s.Stat(sum(data)); ok {
		t.Error("it has its name already")
	}
	close(o.gate)
	if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, data[1000:]) {
		t.Errorf("rest: %d bytes, %v", len(rest), err)
	}
}

func TestManyShareOneDownload(t *testing.T) {
	dir := t.TempDir()
	stores := []*Store{Open(dir), Open(dir)} // the second stands for another process
	data := randomBytes(50_000)
	o := &origin{data: data, gate: make(chan struct{}, 1)}
	o.gate <- struct{}{}
	var wg sync.WaitGroup
	var ready sync.WaitGroup
	for i := range 8 {
		ready.Add(1)
		wg.Go(func() {
			d := stores[i%2].Download(Wanted{Digest: sum(data), Size: int64(len(data))}, o.open, nil)
			defer d.Close()
			ready.Done()
			if got, err := readAll(t, d); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	ready.Wait()
	close(o.gate)
	wg.Wait()
	if n := o.bytes.Load(); n != int64(len(data)) {
		t.Errorf("%d bytes came, the blob has %d", n, len(data))
	}
	for _, s := range stores {
		if len(s.flights) != 0 {
			t.Error("a flight is left")
		}
	}
}

func TestWhatIsNotTheBlobIsRefusedAndRemoved(t *testing.T) {
	data := randomBytes(5000)
	wrong := bytes.Clone(data)
	wrong[4999] ^= 1
	for _, tc := range []struct {
		name string
		sent []byte
		want string
	}{
		{"one bit", wrong, "its 5000 bytes have the digest " + sum(wrong)},
		{"short", data[:3000], "is cut off after 3000 of 5000 bytes, which have the digest " + sum(data[:3000])},
		{"long", append(bytes.Clone(data), 1), "is longer than the 5000 bytes that were announced, which have the digest " + sum(data)},
		{"empty", nil, "is cut off after 0 of 5000 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := Open(t.TempDir())
			o := &origin{data: tc.sent}
			d := s.Download(Wanted{Digest: sum(data), Size: 5000}, o.open, nil)
			defer d.Close()
			_, err := readAll(t, d)
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), sum(data)) {
				t.Errorf("reading: %v", err)
			}
			if err := d.Wait(t.Context()); !fault.Is(err, fault.Invalid) {
				t.Errorf("waiting: %v", err)
			}
			if got := files(t, s); len(got) != 0 {
				t.Errorf("left: %q", got)
			}
		})
	}
}

func TestImpossibleSizeIsRefused(t *testing.T) {
	d := Open(t.TempDir()).Download(Wanted{Digest: sum(nil), Size: -1}, nil, nil)
	defer d.Close()
	if err := d.Wait(t.Context()); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := d.Reader(t.Context()); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestDownloadGoesOnWhereAnEarlierOneEnded(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(20_000)
	want := Wanted{Digest: sum(data), Size: int64(len(data))}
	cut := errors.New("cut")
	first := s.Download(want, (&origin{data: data[:7000], fail: cut}).open, nil)
	if err := first.Wait(t.Context()); !errors.Is(err, cut) {
		t.Fatal(err)
	}
	first.Close()
	if got := files(t, s); len(got) != 1 || !strings.HasPrefix(got[0], partialDir) {
		t.Fatalf("kept: %q", got)
	}
	o := &origin{data: data}
	second := s.Download(want, o.open, nil)
	defer second.Close()
	if got, err := readAll(t, second); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := o.bytes.Load(); n != 13_000 {
		t.Errorf("%d bytes came again", n)
	}
}

// What a power cut has made of a partial file is found out, and nobody has read it before.
func TestDamagedPartialFileCostsOneMoreDownload(t *testing.T) {
	data := randomBytes(20_000)
	for name, left := range map[string][]byte{
		"zeroes": make([]byte, 7000), "complete but wrong": make([]byte, 20_000), "too long": make([]byte, 30_000),
	} {
		t.Run(name, func(t *testing.T) {
			s := Open(t.TempDir())
			partial := s.path(partialDir, sum(data))
			if err := os.MkdirAll(filepath.Dir(partial), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(partial, left, 0o600); err != nil {
				t.Fatal(err)
			}
			o := &origin{data: data}
			d := s.Download(Wanted{Digest: sum(data), Size: int64(len(data))}, o.open, nil)
			defer d.Close()
			if got, err := readAll(t, d); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// Whoever follows a download that fails by its leader's fault goes on by itself.
func TestFollowerTakesOver(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(5000)
	want := Wanted{Digest: sum(data), Size: 5000}
	wrong := &origin{data: randomBytes(4999), gate: make(chan struct{})}
	leader := s.Download(want, wrong.open, nil)
	defer leader.Close()
	o := &origin{data: data}
	follower := s.Download(want, o.open, nil)
	defer follower.Close()
	r, err := follower.Reader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	close(wrong.gate)
	if err := leader.Wait(t.Context()); !fault.Is(err, fault.Invalid) {
		t.Errorf("leader: %v", err)
	}
	if err := follower.Wait(t.Context()); err != nil {
		t.Errorf("follower: %v", err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("follower read %d bytes, %v", len(got), err)
	}
}

// Who began a download may leave; who joined it gets the blob all the same, and from the same Opener.
func TestLeaderLeaves(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(5000)
	want := Wanted{Digest: sum(data), Size: 5000}
	o := &origin{data: data, gate: make(chan struct{})}
	leader := s.Download(want, o.open, nil)
	follower := s.Download(want, o.open, nil)
	defer follower.Close()
	leader.Close()
	leader.Close()
	close(o.gate)
	if err := follower.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := o.opens.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
}

func TestLastOneEndsTheDownload(t *testing.T) {
	before := runtime.NumGoroutine()
	s := Open(t.TempDir())
	data := randomBytes(5000)
	o := &origin{data: data, gate: make(chan struct{}, 1)}
	o.gate <- struct{}{}
	ctx, cancel := context.WithCancelCause(t.Context())
	d := s.Download(Wanted{Digest: sum(data), Size: 5000}, o.open, nil)
	r, err := d.Reader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	if err := d.Wait(ctx); !errors.Is(err, gaveUp) {
		t.Errorf("wait: %v", err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, gaveUp) {
		t.Errorf("read: %v", err)
	}
	r.Close()
	d.Close()
	if len(s.flights) != 0 {
		t.Error("a flight is left")
	}
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

func TestCloseEndsAReadThatWaits(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(5000)
	o := &origin{data: data, gate: make(chan struct{})}
	d := s.Download(Wanted{Digest: sum(data), Size: 5000}, o.open, nil)
	defer d.Close()
	r, err := d.Reader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 1))
		done <- err
	}()
	r.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read: %v", err)
	}
}

// A blob of the store that is not what its name says, after a power cut, is found out by who reads it, and goes.
func TestDamagedBlobIsFoundOut(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(5000)
	digest := put(t, s, data)
	o := &origin{data: data}
	for name, damaged := range map[string][]byte{"zeroes": make([]byte, 5000), "cut": data[:10]} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(s.path(completeDir, digest), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			d := s.Download(Wanted{Digest: digest, Size: 5000}, o.open, nil)
			defer d.Close()
			if _, err := readAll(t, d); err != nil && !fault.Is(err, fault.Invalid) {
				t.Errorf("first: %v", err)
			}
			second := s.Download(Wanted{Digest: digest, Size: 5000}, o.open, nil)
			defer second.Close()
			if got, err := readAll(t, second); err != nil || !bytes.Equal(got, data) {
				t.Errorf("second: %d bytes, %v", len(got), err)
			}
		})
	}
}

// A blob that is pruned between being seen and being read is brought again.
func TestPrunedMeanwhile(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(5000)
	digest := put(t, s, data)
	d := s.Download(Wanted{Digest: digest, Size: 5000}, (&origin{data: data}).open, nil)
	defer d.Close()
	if err := s.Remove(digest); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, d); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestOriginThatCannotBeOpened(t *testing.T) {
	s := Open(t.TempDir())
	gone := fault.New(fault.Unavailable, "gone")
	d := s.Download(Wanted{Digest: sum([]byte("x")), Size: 1}, func(context.Context, int64) (io.ReadCloser, error) { return nil, gone }, nil)
	defer d.Close()
	if _, err := readAll(t, d); !errors.Is(err, gone) {
		t.Error(err)
	}
	if got := files(t, s); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func TestReaderKeepsTheContractOfReaders(t *testing.T) {
	s := Open(t.TempDir())
	data := randomBytes(3000)
	want := Wanted{Digest: sum(data), Size: 3000}
	for _, name := range []string{"while it comes", "when it is there"} {
		t.Run(name, func(t *testing.T) {
			d := s.Download(want, (&origin{data: data}).open, nil)
			defer d.Close()
			r, err := d.Reader(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := iotest.TestReader(r, data); err != nil {
				t.Error(err)
			}
		})
	}
}

// A disk that is full in the middle of a download gets back what the download has taken of it.
func TestFullDiskInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("only root can mount a small file system: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := Open(dir)
	data := randomBytes(2 << 20)
	d := s.Download(Wanted{Digest: sum(data), Size: int64(len(data))}, (&origin{data: data}).open, nil)
	defer d.Close()
	_, err := readAll(t, d)
	if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "at least 2M needed") {
		t.Errorf("%v", err)
	}
	if got := files(t, s); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}
