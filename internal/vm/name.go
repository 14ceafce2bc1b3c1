// Package vm is the vocabulary of virtual machines: names, ids, what a user asks for, states and the legal moves
// between them. It knows nothing of processes, files or wires.
package vm

import (
	"crypto/rand"
	"encoding/hex"
	"strings"

	"banger/internal/fault"
)

// MaxNameLength is the longest VM name: one DNS label (RFC 1035, section 2.3.4).
const MaxNameLength = 63

// Name is the name a user gives to a VM: store key, hostname, DNS label and path fragment at once, so it is refused
// rather than rewritten when it does not fit.
type Name string

// ParseName returns s as a Name, or a fault of class Invalid that says which rule s breaks and shows a valid form.
func ParseName(s string) (Name, error) {
	if rule := BrokenRule(s); rule != "" {
		return "", fault.New(fault.Invalid, "vm name %q %s", shorten(s), rule).
			WithHint("banger vm run --name %s", Suggest(s))
	}
	return Name(s), nil
}

// ParseSnapshotName is ParseName for the name of a snapshot, for which the same rules hold. vm is the VM's name, for the
// hint; it may be empty.
func ParseSnapshotName(s, vm string) (string, error) {
	if rule := BrokenRule(s); rule != "" {
		if vm == "" {
			vm = "NAME"
		}
		return "", fault.New(fault.Invalid, "snapshot name %q %s", shorten(s), rule).
			WithHint("banger vm snapshot %s %s", vm, Suggest(s))
	}
	return s, nil
}

// ParseSessionName checks the name of a session in a VM: that of a VM, but it cannot be a number, as ids of sessions are.
func ParseSessionName(s string) (string, error) {
	rule, valid := BrokenRule(s), Suggest(s)
	if rule == "" && strings.Trim(s, "0123456789") == "" {
		rule, valid = "is a number, as ids of sessions are", "s"+s[:min(len(s), MaxNameLength-1)]
	}
	if rule != "" {
		return "", fault.New(fault.Invalid, "session name %q %s", shorten(s), rule).
			WithHint("banger vm exec --detach --name %s NAME -- COMMAND", valid)
	}
	return s, nil
}

// BrokenRule says in words which of the rules for names s breaks first; "" for a valid one.
func BrokenRule(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > MaxNameLength:
		return "is longer than 63 characters"
	case s[0] == '-':
		return "starts with '-'"
	case s[len(s)-1] == '-':
		return "ends with '-'"
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
		case r >= 'A' && r <= 'Z':
			return "has upper-case letters; names are lower-case letters, digits and '-'"
		default:
			return "has a character other than lower-case letters, digits and '-'"
		}
	}
	return ""
}

// Suggest returns a valid name that is close to s, for hints.
func Suggest(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == MaxNameLength {
			break
		}
	}
	if name := strings.Trim(b.String(), "-"); name != "" {
		return name
	}
	return "dev"
}

func shorten(s string) string {
	if r := []rune(s); len(r) > 80 {
		return string(r[:77]) + "..."
	}
	return s
}

// GenerateName returns a pleasant name that taken does not report as used: "calm-otter", and with a number behind it
// when the words run out.
func GenerateName(taken func(string) bool) Name {
	for try := 0; ; try++ {
		name := adjectives[pick(len(adjectives))] + "-" + animals[pick(len(animals))]
		if try >= 20 {
			name += "-" + hex.EncodeToString(random(2))
		}
		if !taken(name) {
			return Name(name)
		}
	}
}

// ID identifies a VM for its whole life: 12 hexadecimal digits.
type ID string

// NewID returns a random ID.
func NewID() ID { return ID(hex.EncodeToString(random(6))) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

func pick(n int) int {
	b := random(2)
	return (int(b[0])<<8 | int(b[1])) % n
}

var adjectives = strings.Fields(`able agile airy amber ample apt azure bold brave breezy bright brisk calm candid clear
clever cosy crisp dapper deft eager early easy fair fleet fond frank free fresh gentle glad golden grand happy hardy
honest jolly keen kind light lively loyal lucid lucky mellow merry mild neat nimble noble patient placid plucky polite
prime proud quick quiet rapid ready serene sharp silent smart snug solid spry steady sturdy sunny swift tidy trusty
upbeat vivid warm willing wise witty zesty`)

var animals = strings.Fields(`badger beaver bison bobcat buzzard camel caribou condor cougar coyote crane cricket curlew
dingo dolphin eagle egret eland falcon ferret finch fox gannet gazelle gecko gibbon heron hare ibex ibis jackal jackdaw
kestrel kite koala lark lemur leopard linnet llama lynx magpie marmot marten merlin mink mole moose narwhal newt ocelot
oriole osprey otter owl panda pelican penguin petrel pika plover puffin puma quail rabbit raven robin sable salmon seal
shrew sparrow starling stoat stork swallow swan swift tapir tern thrush toucan turtle viper vole walrus weasel whale
wombat wren yak zebra`)
