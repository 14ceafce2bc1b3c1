package store

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func fresh(t *testing.T) *Store { return open(t, filepath.Join(t.TempDir(), "banger.db")) }

func TestOpenMakesAPrivateFileAndOpensItAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it's # a ?weird%20name", "banger.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	insert(t, s, "dev", "000000000001")
	again := open(t, path)
	if _, err := again.FindVM(t.Context(), "dev"); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	var mode string
	var sync int
	if err := s.db.QueryRow("PRAGMA journal_mode").Scan(&mode); err != nil || mode != "wal" {
		t.Errorf("journal mode %s, %v", mode, err)
	}
	if err := s.db.QueryRow("PRAGMA synchronous").Scan(&sync); err != nil || sync != 2 {
		t.Errorf("synchronous %d, %v", sync, err)
	}
}

// snapshot is the contents of every file beside path but the shared-memory index, which is no data.
func snapshot(t *testing.T, path string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "-shm") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(filepath.Dir(path), e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = data
	}
	return files
}

func raw(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, st := range statements {
		if _, err := db.Exec(st); err != nil {
			t.Fatalf("%s: %v", st, err)
		}
	}
}

func TestOpenRefusesAndLeavesTheFileAsItIs(t *testing.T) {
	tests := map[string]struct {
		make func(t *testing.T, path string)
		want string
	}{
		"newer schema": {func(t *testing.T, path string) {
			raw(t, path, "PRAGMA application_id = 0x626e6772", "CREATE TABLE x (y)", "PRAGMA user_version = 1000")
		}, "newer banger (schema 1000"},
		"newer schema, in the log only": {func(t *testing.T, path string) { leaveLog(t, path, 0x626e6772) }, "newer banger (schema 1000"},
		"another program":               {func(t *testing.T, path string) { raw(t, path, "PRAGMA application_id = 7", "CREATE TABLE x (y)") }, "of another program"},
		"another program without a mark": {func(t *testing.T, path string) {
			raw(t, path, "CREATE TABLE x (y)")
		}, "of another program"},
		"not a database": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("banger\n"), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "damaged"},
		"short": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("SQLite format 3\x00"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "damaged"},
		"torn": {func(t *testing.T, path string) { tear(t, path) }, "damaged"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "banger.db")
			tt.make(t, path)
			before := snapshot(t, path)
			s, err := Open(t.Context(), path)
			if err == nil {
				s.Close()
				t.Fatal("was opened")
			}
			if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("err = %v", err)
			}
			if fault.HintOf(err) == "" {
				t.Error("no hint")
			}
			after := snapshot(t, path)
			for file := range before {
				if !bytes.Equal(before[file], after[file]) {
					t.Errorf("%s was changed", file)
				}
			}
			if len(before) != len(after) {
				t.Errorf("%d files before, %d after", len(before), len(after))
			}
		})
	}
}

// leaveLog makes a database whose newer schema version is in its write-ahead log only, as a killed process leaves it.
func leaveLog(t *testing.T, path string, app int) {
	t.Helper()
	work := filepath.Join(t.TempDir(), "work.db")
	db, err := sql.Open("sqlite", work)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, st := range []string{
		"PRAGMA journal_mode = WAL", fmt.Sprintf("PRAGMA application_id = %d", app), "CREATE TABLE x (y)",
		"PRAGMA user_version = 1", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA user_version = 1000",
	} {
		if _, err := db.Exec(st); err != nil {
			t.Fatalf("%s: %v", st, err)
		}
	}
	for from, to := range map[string]string{work: path, work + "-wal": path + "-wal"} {
		data, err := os.ReadFile(from)
		if err != nil || len(data) == 0 {
			t.Fatalf("%s: %d bytes, %v", from, len(data), err)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// tear makes a database with pages that are overwritten by something else.
func tear(t *testing.T, path string) {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		insert(t, s, fmt.Sprintf("vm-%d", i), fmt.Sprintf("%012d", i))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 8192), 4096); err != nil {
		t.Fatal(err)
	}
}

func TestMigrationsAreNumberedWithoutGaps(t *testing.T) {
	for i, name := range migrationNames() {
		if want := fmt.Sprintf("migrations/%04d_", i+1); !strings.HasPrefix(name, want) {
			t.Errorf("migration %d is called %s", i+1, name)
		}
	}
}

// TestKilledWriter kills a process in the middle of writing: every insert that it was told had succeeded is there, and
// the file is in order.
func TestKilledWriter(t *testing.T) {
	if path := os.Getenv("BANGER_STORE_WRITER"); path != "" {
		writeForEver(path)
	}
	path := filepath.Join(t.TempDir(), "banger.db")
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledWriter$")
		cmd.Env = append(os.Environ(), "BANGER_STORE_WRITER="+path, fmt.Sprintf("BANGER_STORE_ROUND=%d", round))
		var said lockedBuffer
		cmd.Stdout = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Minute)
		for strings.Count(said.String(), "\n") < 30 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(said.String(), "\n")
		for _, name := range lines[:len(lines)-1] {
			if err := s.CheckName(t.Context(), vmName(name)); !fault.Is(err, fault.Exists) {
				t.Errorf("%s is lost: %v", name, err)
			}
		}
		if len(lines) < 30 {
			t.Errorf("only %d inserts", len(lines))
		}
		s.Close()
	}
}

func writeForEver(path string) {
	ctx := context.Background()
	s, err := Open(ctx, path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_ = s.PutArtifact(ctx, Artifact{Kind: Image, Name: "i", Digest: "sha256:i"}, Happened{Verb: "added"})
	_ = s.PutArtifact(ctx, Artifact{Kind: Kernel, Name: "k", Digest: "sha256:k"}, Happened{Verb: "added"})
	for i := 0; ; i++ {
		name := fmt.Sprintf("vm-%s-%d", os.Getenv("BANGER_STORE_ROUND"), i)
		if err := s.InsertVM(ctx, row(name, fmt.Sprintf("%s%011d", os.Getenv("BANGER_STORE_ROUND"), i))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(name)
	}
}
