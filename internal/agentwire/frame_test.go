package agentwire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"banger/internal/fault"
)

func TestFramesRoundTrip(t *testing.T) {
	var wire bytes.Buffer
	data := bytes.Repeat([]byte("x"), MaxData)
	for _, write := range []func() error{
		func() error { return WriteRequest(&wire, MethodExec, ExecStart{Argv: []string{"true"}}) },
		func() error { return WriteFrame(&wire, FrameStdin, data) },
		func() error { return WriteFrame(&wire, FrameStdinEOF, nil) },
		func() error { return WriteCredit(&wire, 77) },
		func() error { return WriteJSON(&wire, FrameExited, ExecExited{Code: 3}) },
	} {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(iotest.HalfReader(&wire))
	for _, want := range []struct {
		t       FrameType
		payload string
	}{
		{FrameRequest, `{"method":"exec","params":{"argv":["true"]}}`},
		{FrameStdin, string(data)},
		{FrameStdinEOF, ""},
		{FrameCredit, "\x00\x00\x00\x4d"},
		{FrameExited, `{"code":3}`},
	} {
		got, payload, err := r.Next()
		if err != nil || got != want.t || string(payload) != want.payload {
			t.Fatalf("got %d, %d bytes, %v; want %d, %d bytes", got, len(payload), err, want.t, len(want.payload))
		}
	}
	if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestReaderRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   string
		want error
	}{
		{"unknown type", "\x00\x00\x00\x00\x00", ErrFrame},
		{"data beyond the limit", "\x05\x00\x01\x00\x01", ErrFrame},
		{"json beyond the limit", "\x02\x00\x10\x00\x01", ErrFrame},
		{"length of four gigabytes", "\x02\xff\xff\xff\xff", ErrFrame},
		{"end of stdin with content", "\x04\x00\x00\x00\x01x", ErrFrame},
		{"cut off in the header", "\x05\x00", io.ErrUnexpectedEOF},
		{"cut off in the payload", "\x05\x00\x00\x00\x02x", io.ErrUnexpectedEOF},
		{"cut off before the payload", "\x05\x00\x00\x00\x02", io.ErrUnexpectedEOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, _, err := NewReader(strings.NewReader(tc.in)).Next(); !errors.Is(err, tc.want) {
				t.Errorf("err = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestWriteFrameRefusesWhatNoReaderTakes(t *testing.T) {
	if err := WriteFrame(io.Discard, FrameStdout, make([]byte, MaxData+1)); !errors.Is(err, ErrFrame) {
		t.Errorf("err = %v", err)
	}
	if err := WriteFrame(io.Discard, 99, nil); !errors.Is(err, ErrFrame) {
		t.Errorf("err = %v", err)
	}
}

func FuzzReader(f *testing.F) {
	var seed bytes.Buffer
	_ = WriteRequest(&seed, MethodHello, nil)
	_ = WriteFrame(&seed, FrameStdout, []byte("out"))
	_ = WriteCredit(&seed, 1)
	f.Add(seed.Bytes())
	f.Add([]byte("\x02\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		var again bytes.Buffer
		for {
			ft, payload, err := r.Next()
			if err != nil {
				break
			}
			if err := WriteFrame(&again, ft, payload); err != nil {
				t.Fatalf("a frame that was read cannot be written: %v", err)
			}
		}
		if !bytes.HasPrefix(in, again.Bytes()) {
			t.Error("what was read is not what was there")
		}
		if cap(r.buf) > MaxJSON {
			t.Errorf("buffer of %d bytes", cap(r.buf))
		}
	})
}

func TestFaultsCrossTheWire(t *testing.T) {
	err := FaultOf(fault.New(fault.NotFound, "vm %s", "dev").WithHint("banger vm list")).Err()
	if !fault.Is(err, fault.NotFound) || err.Error() != "vm dev" || fault.HintOf(err) != "banger vm list" {
		t.Errorf("err = %v, hint %q", err, fault.HintOf(err))
	}
	hostile := Fault{Class: "from the future", Message: "a\x1b]0;title\x07b\nc" + strings.Repeat("x", 2*maxText)}
	err = hostile.Err()
	if !fault.Is(err, fault.Internal) || strings.ContainsAny(err.Error(), "\x1b\x07\n") || len(err.Error()) > maxText+20 {
		t.Errorf("err = %.80q, %d bytes", err, len(err.Error()))
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]int{"TERM": 15, "sigint": 2, "SIGKILL": 9, "9": 9, "34": 34} {
		if sig, err := ParseSignal(name); err != nil || int(sig) != want {
			t.Errorf("%s = %d, %v", name, sig, err)
		}
	}
	for _, name := range []string{"", "0", "-1", "65", "SIG", "NOPE"} {
		if _, err := ParseSignal(name); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
