package sparse

import (
	"bytes"
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

// TestWriterWritesWhatItIsGiven makes writes of all lengths in a file and in memory.
func TestWriterWritesWhatItIsGiven(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		f := create(t)
		w := NewWriter(f)
		var want []byte
		for range 60 {
			p := make([]byte, rng.IntN(60000))
			for at := rng.IntN(30000); at < len(p); at += 1 + rng.IntN(40000) {
				p[at] = byte(1 + rng.IntN(255))
			}
			want = append(want, p...)
			if n, err := w.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(got, want) {
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
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil || st.Size != 64<<20 || st.Blocks*512 > 32*2*blockSize {
		t.Errorf("size %d, used %d, err %v", st.Size, st.Blocks*512, err)
	}
}
