package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

func TestAddDownloads(t *testing.T) {
	var asked atomic.Int32
	contents := "hello"
	mux := http.NewServeMux()
	mux.HandleFunc("/f.txt", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("Last-Modified", "Sun, 02 Feb 2020 02:02:02 GMT")
		fmt.Fprint(w, contents)
	})
	mux.HandleFunc("/a.tar", func(w http.ResponseWriter, r *http.Request) { w.Write(tarOf(t, file{name: "in", data: "I"})) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/f.txt", http.StatusFound) })
	mux.HandleFunc("/secret", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
	mux.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	mux.HandleFunc("/short", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "x")
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	client := func(o *Options) { o.Client = server.Client() }
	sumOf := func(s string) string { sum := sha256.Sum256([]byte(s)); return "sha256:" + hex.EncodeToString(sum[:]) }
	b := newBench(t)

	for _, tc := range []struct {
		text string
		want []string
		err  string
		is   fault.Class
	}{
		{text: "ADD URL/f.txt /x", want: []string{"x 600 0:0 hello"}},
		{text: "ADD --chmod=755 --chown=3 URL/moved?a=b /x/", want: []string{"x/ 755 3:3", "x/moved 755 3:3 hello"}},
		{text: "ADD URL/a.tar /", want: []string{"a.tar 600 0:0 " + string(tarOf(t, file{name: "in", data: "I"}))}},
		{text: "ADD --unpack URL/a.tar /", want: []string{"in 644 0:0 I"}},
		{text: "ADD --checksum=" + sumOf("hello") + " URL/f.txt /x", want: []string{"x 600 0:0 hello"}},
		{text: "ADD --checksum=" + sumOf("other") + " URL/f.txt /x", err: "URL/f.txt has the checksum " + sumOf("hello") + " instead of " + sumOf("other") + ": the file was changed, or the checksum is wrong", is: fault.Invalid},
		{text: "ADD URL/none /x", err: "download URL/none: the server says 404 Not Found", is: fault.NotFound},
		{text: "ADD URL/secret /x", err: "download URL/secret: the server says 403 Forbidden", is: fault.Denied},
		{text: "ADD URL/broken /x", err: "download URL/broken: the server says 502 Bad Gateway", is: fault.Unavailable},
		{text: "ADD URL/short /x", err: "download URL/short: the server does not answer as it should: unexpected EOF", is: fault.Unavailable},
	} {
		text := strings.ReplaceAll(tc.text, "URL", server.URL)
		out, err := b.build(t.Context(), "FROM scratch\n"+text, "", client)
		if tc.err != "" {
			if want := strings.ReplaceAll(tc.err, "URL", server.URL); err == nil || !strings.HasSuffix(err.Error(), ": "+want) || !fault.Is(err, tc.is) {
				t.Errorf("%s:\n got %v (%s)\nwant %s", tc.text, err, fault.ClassOf(err), want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.text, err)
		} else if diff := cmp.Diff(tc.want, b.tree(out.Layers)); diff != "" {
			t.Errorf("%s: tree (-want +got):\n%s", tc.text, diff)
		}
	}
	if got := b.times(b.mustBuild("FROM scratch\nADD "+server.URL+"/f.txt /x", "", client).Layers)["x"]; got != "2020-02-02" {
		t.Errorf("time %s", got)
	}

	// With a checksum a step that is cached asks nobody; without one what comes decides.
	asked.Store(0)
	b.mustBuild("FROM scratch\nADD --checksum="+sumOf("hello")+" "+server.URL+"/f.txt /x", "", client)
	if asked.Load() != 0 {
		t.Error("a checksum that is cached is downloaded")
	}
	contents = "changed"
	out := b.mustBuild("FROM scratch\nADD "+server.URL+"/f.txt /x\nADD "+server.URL+"/f.txt /y", "", client)
	if diff := cmp.Diff([]string{"x 600 0:0 changed", "y 600 0:0 changed"}, b.tree(out.Layers)); diff != "" || asked.Load() != 1 {
		t.Errorf("asked %d times; tree (-want +got):\n%s", asked.Load(), diff)
	}
	_, err := b.build(t.Context(), "FROM scratch\nADD http://me:secret@"+strings.TrimPrefix(server.URL, "http://")+"/none /x", "", client)
	if err == nil || strings.Contains(err.Error()+fmt.Sprint(b.log()), "secret@") {
		t.Errorf("a password is in the message: %v", err)
	}
}
