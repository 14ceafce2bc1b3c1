package pipe

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"
)

func noise(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = rng.Read(b)
	return b
}

func TestPipeDeliversEverything(t *testing.T) {
	want := noise(5*chunkSize + 12345)
	end := errors.New("the end")
	for name, send := range map[string]func(*Writer) error{
		"small writes": func(w *Writer) error {
			for p := want; len(p) > 0; p = p[min(len(p), 1000):] {
				if _, err := w.Write(p[:min(len(p), 1000)]); err != nil {
					return err
				}
			}
			return nil
		},
		"one write": func(w *Writer) error { _, err := w.Write(want); return err },
		"ReadFrom":  func(w *Writer) error { _, err := w.ReadFrom(bytes.NewReader(want)); return err },
		"slow ReadFrom": func(w *Writer) error {
			_, err := w.ReadFrom(iotest.HalfReader(bytes.NewReader(want)))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, w := New()
			var sending sync.WaitGroup
			sending.Go(func() {
				if err := send(w); err != nil {
					t.Error(err)
				}
				w.CloseWithError(end)
				if _, err := w.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("write after close: %v", err)
				}
			})
			got, err := io.ReadAll(r)
			sending.Wait()
			if !errors.Is(err, end) || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, err = %v", len(got), err)
			}
		})
	}
}

func TestPipeEnds(t *testing.T) {
	r, w := New()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.CloseWithError(errors.New("too late"))
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

// TestPipeReaderGone expects a writer that waits for room to be told, and a reader that waits for bytes.
func TestPipeReaderGone(t *testing.T) {
	r, w := New()
	var ends sync.WaitGroup
	ends.Go(func() {
		if n, err := w.Write(make([]byte, 100*chunkSize)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("wrote %d, err = %v", n, err)
		}
		w.CloseWithError(nil)
	})
	if _, err := io.ReadFull(r, make([]byte, chunkSize)); err != nil {
		t.Error(err)
	}
	r.Close()
	r.Close()
	ends.Wait()

	r, _ = New()
	ends.Go(func() {
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("read: %v", err)
		}
	})
	r.Close()
	ends.Wait()
}
