package archtest

import "slices"

// Budgets: restic, tailscale and age stay far below these.
const (
	maxFileLines = 800
	maxFuncLines = 100
)

// Let off from a budget, with the size they had when they were let off. These lists may only shrink.
var (
	longFuncs = map[string]int{}
	longFiles = map[string]int{}
)

func fileAllowed(file string, lines int) bool { return longFiles[file] >= lines }

var forbiddenNames = []string{"util", "utils", "common", "types", "models", "model", "helpers", "helper", "misc", "shared", "base"}

// The layers, from the bottom: vocabulary, mechanisms, seams and stores, roles, composition root. Imports go down.
const (
	vocabulary = `banger/internal/(fault|vm|progress|agentwire|version)`
	mechanisms = `banger/internal/(paths|atomicfile|undo|keylock|sock|rpc|proc|pipe|sparse|diskcopy|hostmem|hostclock)`
	roles      = `banger/internal/(cli|client|daemon(/.*)?|supervisor|agent)`
	anything   = `.*`
)

var bans = []ban{
	{from: vocabulary, to: `.*\..*/.*`, except: `banger/internal/agentwire`, reason: "the vocabulary needs the standard library only"},
	{from: vocabulary + `|` + mechanisms, to: roles + `|banger/internal/(store|image|kernel|hypervisor|guest|config|term|ext4|template|snapshot)(/.*)?`, reason: "imports go down, to mechanisms and not from them"},
	{from: `banger/internal/(hypervisor|image|kernel|store|guest|ext4|debarchive|netstack|config|preflight|term|template|snapshot)(/.*)?`, to: roles, except: `banger/internal/hypervisor/(fakevmm|hypervisortest)`, reason: "seams and stores do not know the roles"},
	{from: anything, to: `database/sql|modernc\.org/sqlite.*`, except: `banger/internal/store`, reason: "the only SQL is in store"},
	{from: anything, to: `banger/internal/hypervisor/(qemu|firecracker)`, except: `banger/cmd/banger|banger/bench|banger/internal/hypervisor/.*`, reason: "only the composition root sees concrete drivers"},
	{from: `banger/(cmd|internal)/.*`, to: `banger/internal/hypervisor/(fakevmm|hypervisortest)`, except: `banger/internal/hypervisor/.*`, reason: "the fake VMM is for tests"},
	{from: `banger/(cmd/banger-agent|internal/agent|internal/agentwire)`, to: `net/http|connectrpc\.com/.*|google\.golang\.org/protobuf.*|banger/proto/.*|github\.com/spf13/.*`, reason: "the agent is loaded and translated at every start: it stays small"},
	{from: `banger/internal/cli`, to: `banger/internal/(daemon|store|supervisor|image|kernel|ext4|guest|agent|template|snapshot)(/.*)?|banger/internal/hypervisor/.*`, reason: "the CLI talks to the daemon and to supervisors over their wires"},
	{from: `banger/internal/daemon(/.*)?`, to: `banger/internal/(cli|client|term|supervisor|agent)`, reason: "roles meet on wires and in vmdir, not in each other's code"},
	{from: `banger/internal/vmclient`, to: roles + `|banger/internal/(store|image|kernel|hypervisor|guest|config|term)(/.*)?`, reason: "it is the wire's near end and nothing else"},
	{from: `banger/internal/supervisor`, to: `banger/internal/(cli|client|term|daemon|store|image|kernel|template|snapshot)(/.*)?`, reason: "a supervisor outlives the daemon and needs nothing of it"},
}

// Only these may use the process's own standard streams or end it.
func writesTerminal(path string) bool {
	return slices.Contains([]string{
		"banger/cmd/banger", "banger/cmd/banger-agent", "banger/internal/term", "banger/internal/hypervisor/fakevmm", "banger/bench",
	}, path)
}

var bannedSelectors = map[string]string{
	"os.Stdout":   "package term is the only writer to the user's terminal",
	"os.Exit":     "return an error; main chooses the exit code",
	"fmt.Println": "package term is the only writer to the user's terminal",
	"fmt.Printf":  "package term is the only writer to the user's terminal",
	"log.Fatal":   "return an error; main chooses the exit code",
	"log.Fatalf":  "return an error; main chooses the exit code",
}
