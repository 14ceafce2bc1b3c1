package sparse

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func create(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestWriterWritesWhatItIsGiven makes writes and seeks of all kinds in a file and in memory.
func TestWriterWritesWhatItIsGiven(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		f := create(t)
		w := NewWriter(f)
		if seed%2 == 0 {
			w.WriteBack()
		}
		var want []byte
		for range 60 {
			if rng.IntN(3) == 0 {
				to, err := w.Seek(int64(rng.IntN(1<<20)), io.SeekStart)
				if err != nil || to != w.pos {
					t.Fatal(to, err)
				}
			}
			p := make([]byte, rng.IntN(60000))
			for at := rng.IntN(30000); at < len(p); at += 1 + rng.IntN(40000) {
				p[at] = byte(1 + rng.IntN(255))
			}
			if end := int(w.pos) + len(p); len(p) > 0 && end > len(want) {
				want = append(want, make([]byte, end-len(want))...)
			}
			copy(want[min(int(w.pos), len(want)):], p)
			if n, err := w.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
		}
		at := int64(rng.IntN(len(want)))
		if _, err := w.Seek(at, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(w); err != nil || !bytes.Equal(got, want[at:]) {
			t.Fatalf("seed %d: reads %d bytes from %d, err = %v", seed, len(got), at, err)
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(got, want) || w.Size() != int64(len(want)) {
			t.Fatalf("seed %d: the file differs, err = %v", seed, err)
		}
	}
}

func TestZerosTakeNoSpace(t *testing.T) {
	f := create(t)
	w := NewWriter(f)
	piece := make([]byte, 1<<20)
	for i := range 64 {
		piece[5000] = byte(i % 2)
		if _, err := w.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if end, err := w.Seek(0, io.SeekEnd); end != 64<<20 || err != nil {
		t.Errorf("end %d, err %v", end, err)
	}
	if _, err := w.Seek(-1, io.SeekStart); err == nil {
		t.Error("a negative offset was accepted")
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil || st.Size != 64<<20 || st.Blocks*512 > 32*2*blockSize {
		t.Errorf("size %d, used %d, err %v", st.Size, st.Blocks*512, err)
	}
}
