package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
)

const typeGzip = "application/vnd.oci.image.layer.v1.tar+gzip"

// TestHostileLayers expects each bad layer to be a fault that names the layer and the entry, from Flatten and
// from OpenTree, and nothing to be left in scratch.
func TestHostileLayers(t *testing.T) {
	loop := []item{symlink("a", "b"), symlink("b", "a"), reg("a/x", "x")}
	good := pack(t, base()...)
	many := make([]item, 60)
	for i := range many {
		many[i] = reg(fmt.Sprint("file", i), "")
	}
	tower := []item{dir(strings.Repeat("d/", 2000), 0o755)} // 2000 directories of one entry
	deep := []item{symlink("s", strings.Repeat("d/", 1500)), symlink(strings.Repeat("d/", 1500)+"t", strings.Repeat("e/", 1500)), reg("s/t/x", "x")}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		blob    Blob
		limits  Limits
		class   fault.Class
		message []string
	}{
		"loop of links":        {blob: tarBlob(t, loop...), message: []string{`"a/x"`, "too many symbolic links"}},
		"link to itself":       {blob: tarBlob(t, reg("a", "1"), link("a", "a")), message: []string{`"a"`, "not there"}},
		"link to a directory":  {blob: tarBlob(t, dir("d", 0), link("a", "d")), message: []string{"is a directory"}},
		"link to the root":     {blob: tarBlob(t, link("a", "/")), message: []string{"not there"}},
		"link out of the root": {blob: tarBlob(t, link("a", "../../etc/hostname")), message: []string{"not there"}},
		"whiteout of ..":       {blob: tarBlob(t, reg("d/.wh...", "")), message: []string{`whiteout of ".."`}},
		"whiteout of .":        {blob: tarBlob(t, reg("d/.wh..", "")), message: []string{`whiteout of "."`}},
		"whiteout of nothing":  {blob: tarBlob(t, reg("d/.wh.", "")), message: []string{`whiteout of ""`}},
		"file as directory":    {blob: tarBlob(t, reg("f", ""), reg("f/g", "")), message: []string{`"f/g"`, `"f" is not a directory`}},
		"root as file":         {blob: tarBlob(t, reg(".", "")), message: []string{"the root must be a directory"}},
		"root as link":         {blob: tarBlob(t, symlink("/..", "/tmp")), message: []string{"the root must be a directory"}},
		"unknown type":         {blob: tarBlob(t, item{Header: tar.Header{Typeflag: 'Z', Name: "z", Format: tar.FormatUSTAR}}), message: []string{"unknown type 'Z'"}},
		"long name":            {blob: tarBlob(t, reg(strings.Repeat("n", 256), "")), message: []string{"256 bytes"}},
		"long path":            {blob: tarBlob(t, reg(strings.Repeat("n/", 3000)+"f", "")), message: []string{"bad path"}},
		"longer by links":      {blob: tarBlob(t, deep...), message: []string{`"s/t/x"`, "longer than 4095"}},
		"owner":                {blob: tarBlob(t, item{Header: tar.Header{Typeflag: tar.TypeDir, Name: "d", Uid: 1 << 33}}), message: []string{"owner"}},
		"device":               {blob: tarBlob(t, item{Header: tar.Header{Typeflag: tar.TypeChar, Name: "d", Devmajor: 1 << 20, Format: tar.FormatGNU}}), message: []string{"device number"}},
		"attributes": {
			blob:  tarBlob(t, item{Header: tar.Header{Typeflag: tar.TypeDir, Name: "d", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 70000)}}}),
			class: fault.Exhausted, message: []string{`"d"`, "more than 65536 bytes"},
		},
		"attribute's name": {
			blob:    tarBlob(t, item{Header: tar.Header{Typeflag: tar.TypeDir, Name: "d", PAXRecords: map[string]string{"SCHILY.xattr." + strings.Repeat("x", 300): ""}}}),
			message: []string{"bad name"},
		},
		"entries": {blob: tarBlob(t, many...), limits: Limits{Entries: 50}, class: fault.Exhausted, message: []string{"more than 50 entries"}},
		"names":   {blob: tarBlob(t, tower...), limits: Limits{Memory: 200 << 10}, class: fault.Exhausted, message: []string{"of memory"}},
		"bomb": {
			blob: bytesBlob(typeGzip, gzipped(t, pack(t, reg("zeros", strings.Repeat("\x00", 8<<20))))), limits: Limits{Size: 1 << 20},
			class: fault.Exhausted, message: []string{`"zeros"`, "more than 1M"},
		},
		"bomb behind the end": {
			blob: bytesBlob(typeGzip, gzipped(t, append(pack(t), make([]byte, 8<<20)...))), limits: Limits{Size: 1 << 20},
			class: fault.Exhausted, message: []string{"more than 1M"},
		},
		"sparse bomb": {
			blob: bytesBlob("", sparseBomb(t)), class: fault.Exhausted, message: []string{`"huge"`, "uncompressed"},
		},
		"bomb of zstd": {
			blob:  bytesBlob("application/vnd.oci.image.layer.v1.tar+zstd", []byte("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00")),
			class: fault.Exhausted, message: []string{"to decompress"},
		},
		"cut gzip":    {blob: bytesBlob(typeGzip, gzipped(t, good)[:1000]), message: []string{"gzip", "cut off"}},
		"cut zstd":    {blob: bytesBlob("application/vnd.oci.image.layer.v1.tar+zstd", enc.EncodeAll(good, nil)[:700]), message: []string{"zstd", "cut off"}},
		"cut tar":     {blob: bytesBlob("", good[:1000]), message: []string{"cut off"}},
		"cut in file": {blob: bytesBlob("", pack(t, reg("f", strings.Repeat("x", 5000)))[:4000]), message: []string{`"f"`, "cut off"}},
		"damaged gzip": {
			blob: bytesBlob(typeGzip, damaged(gzipped(t, good))), message: []string{"damaged"},
		},
		"not a tar": {blob: bytesBlob("", bytes.Repeat([]byte("no tar"), 1000)), message: []string{"tar stream is damaged"}},
		"not gzip":  {blob: bytesBlob(typeGzip, bytes.Repeat([]byte("no gzip"), 1000)), message: []string{"not gzip data"}},
		"nothing":   {blob: bytesBlob(typeGzip, nil), message: []string{"not gzip data"}},
		"unknown type of blob": {
			blob: bytesBlob("application/vnd.example.squashfs", good), message: []string{`unknown media type "application/vnd.example.squashfs"`},
		},
		"encrypted": {
			blob: bytesBlob("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", good), message: []string{"is encrypted"},
		},
		"wrong size":    {blob: Blob{Size: int64(len(good)) + 5, Open: bytesBlob("", good).Open}, message: []string{"bytes instead of"}},
		"wrong diff id": {blob: Blob{DiffID: "sha256:00", Open: bytesBlob("", good).Open}, message: []string{"digest", "instead of sha256:00"}},
		"supplier":      {blob: failing(good, fault.New(fault.Conflict, "wrong digest")), class: fault.Conflict, message: []string{"wrong digest"}},
		"supplier cut":  {blob: failing(gzipped(t, good)[:500], fault.New(fault.Unavailable, "gone")), class: fault.Unavailable, message: []string{"gone"}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.class == "" {
				tc.class = fault.Invalid
			}
			opt := Options{Scratch: t.TempDir(), Limits: tc.limits}
			tc.blob.Digest = "sha256:0123456789abcdef"
			lowest := bytesBlob("", pack(t, reg("low", "")))
			verify := func(how string, err error) {
				t.Helper()
				if hint := fault.HintOf(err); (tc.limits.Size > 0) != (hint == "banger config set limits.image_size 1G") && tc.limits.Entries == 0 && name != "sparse bomb" {
					t.Errorf("%s: hint %q", how, hint)
				} else if tc.limits.Entries > 0 && hint != "banger config set limits.image_entries 100" {
					t.Errorf("%s: hint %q", how, hint)
				}
				if !fault.Is(err, tc.class) {
					t.Errorf("%s: err = %v (%s), want class %s", how, err, fault.ClassOf(err), tc.class)
				}
				message, blame := tc.message, "layer 2 (sha256:0123456789ab): "
				if tc.limits != (Limits{}) && how != "flat" && strings.Contains(fmt.Sprint(err), "layer 1: ") {
					// The limit is of all layers together, and two are read at once: whichever comes when it is used up.
					message, blame = tc.message[len(tc.message)-1:], ""
				}
				for _, part := range append(message, blame) {
					if !strings.Contains(fmt.Sprint(err), part) {
						t.Errorf("%s: no %q in %q", how, part, err)
					}
				}
			}
			_, err := OpenTree(context.Background(), []Blob{lowest, tc.blob}, opt)
			verify("tree", err)
			_, err = flat([]Blob{lowest, tc.blob}, opt)
			verify("flat", err)
			_, err = fill([]Blob{lowest, tc.blob}, opt, t.TempDir()+"/fs")
			verify("filled", err)
			if left, err := os.ReadDir(opt.Scratch); err != nil || len(left) > 0 {
				t.Errorf("left in scratch: %v, %v", left, err)
			}
		})
	}
}

func tarBlob(t *testing.T, items ...item) Blob { return bytesBlob("", pack(t, items...)) }

func damaged(data []byte) []byte {
	data[len(data)/2] ^= 0xff
	data[len(data)/2+1] ^= 0xff
	return data
}

// failing supplies data and then an error in place of its end.
func failing(data []byte, err error) Blob {
	return Blob{Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(data), errReader{err})), nil
	}}
}

type errReader struct{ error }

func (r errReader) Read([]byte) (int, error) { return 0, r.error }

// sparseBomb is a GNU sparse file of some exabytes that has no data at all.
func sparseBomb(t *testing.T) []byte {
	data := pack(t, item{Header: tar.Header{Typeflag: tar.TypeReg, Name: "huge", Format: tar.FormatGNU}})
	block := data[:512]
	block[156] = 'S'
	copy(block[483:495], "\x80\x00\x00\x00\x3f\xff\xff\xff\xff\xff\xff\xff") // the size with all holes
	for i := 148; i < 156; i++ {
		block[i] = ' '
	}
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

// TestNoScratch expects a fault when contents have no place to wait in.
func TestNoScratch(t *testing.T) {
	big := pack(t, reg("big", strings.Repeat("x", 2*scratchBuffer)))
	for name, dir := range map[string]string{"missing": t.TempDir() + "/missing", "full": "/dev/null"} {
		if _, err := flat(blobs(big, big), Options{Scratch: dir}); err == nil || !strings.Contains(err.Error(), "scratch file") {
			t.Errorf("%s: err = %v", name, err)
		}
	}
}

func TestProgress(t *testing.T) {
	first, second := gzipped(t, pack(t, base()...)), pack(t, reg("a", "1"), reg("a", "2")) // the second begins anew
	layers := []Blob{bytesBlob(typeGzip, first), bytesBlob("", second)}
	var last int64
	a, err := flat(layers, Options{Scratch: t.TempDir(), Progress: func(done int64) {
		if done <= last {
			t.Errorf("%d comes after %d", done, last)
		}
		last = done
	}})
	if err != nil || !a.restart || last != int64(len(first)+len(second)) {
		t.Errorf("err %v, anew %v, %d of %d bytes", err, a.restart, last, len(first)+len(second))
	}
}

// TestSparseFiles expects holes to take nothing, whichever way they are written in the layer.
func TestSparseFiles(t *testing.T) {
	const size = 64 << 20
	zeros := strings.Repeat("\x00", size)
	data := pack(t, reg("f", zeros[:size-1]+"x"))
	opt := Options{Scratch: t.TempDir()}
	tree, err := OpenTree(t.Context(), []Blob{bytesBlob(typeGzip, gzipped(t, data))}, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	info, err := tree.layers[0].scratch.f.Stat()
	if err != nil || info.Size() != size {
		t.Fatalf("%v, %v", info, err)
	}
	if used := blocksOf(info) * 512; used > 1<<20 {
		t.Errorf("it takes %d bytes", used)
	}
	e, ok := tree.Lookup("f")
	if !ok {
		t.Fatal("no file")
	}
	r, err := tree.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || len(got) != size || got[size-1] != 'x' || got[0] != 0 {
		t.Errorf("%d bytes, err %v", len(got), err)
	}
	if _, err := tree.Open(tree.tree.root); !fault.Is(err, fault.Invalid) {
		t.Errorf("contents of a directory: %v", err)
	}
	if _, ok := tree.Lookup("f/g"); ok {
		t.Error("there is something below a file")
	}
	if err := tree.Walk("nothing", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("walk: %v", err)
	}
}

func blocksOf(info os.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks }
