#!/usr/bin/env bash
# End-to-end smoke test of a built binary, as a user would drive it: real image, real kernel, real VMs.
#
#   scripts/smoke.sh [path/to/banger]
#
# Uses BANGER_SMOKE_HOME (kept) or a temporary home (removed). Ends with "N passed, M failed".
set -uo pipefail
banger=$(realpath "${1:-bin/banger}")
work=$(mktemp -d /tmp/bsmoke.XXXXXX)
export BANGER_HOME=${BANGER_SMOKE_HOME:-$work/h}
mkdir -p "$BANGER_HOME"
passed=0 failed=0

finish() {
  "$banger" vm list -q 2>/dev/null | xargs -r "$banger" vm rm --force >/dev/null 2>&1
  "$banger" daemon stop >/dev/null 2>&1
  rm -rf "$work"
}
trap finish EXIT

pass() { passed=$((passed + 1)); printf 'ok    %s\n' "$1"; }
fail() { failed=$((failed + 1)); printf 'FAIL  %s\n' "$1"; shift; printf '      %s\n' "$@"; }

# check NAME WANT_CODE WANT_STDOUT_REGEX COMMAND...: runs COMMAND without a terminal and looks at its code and stdout.
# Its stderr is in $work/err afterwards.
check() {
  local name=$1 code=$2 pattern=$3 got
  shift 3
  "$@" >"$work/out" 2>"$work/err" </dev/null
  got=$?
  if [ "$got" -ne "$code" ]; then
    fail "$name" "exit code $got, want $code" "$(tail -5 "$work/err")"
  elif ! grep -qE -- "$pattern" "$work/out" && [ -n "$pattern" ]; then
    fail "$name" "stdout does not match $pattern:" "$(tail -5 "$work/out")"
  else
    pass "$name"
  fi
}
stderr_has() { # NAME REGEX
  if grep -qE -- "$2" "$work/err"; then pass "$1"; else fail "$1" "stderr does not match $2:" "$(tail -5 "$work/err")"; fi
}
is() { # NAME WANT GOT
  if [ "$2" = "$3" ]; then pass "$1"; else fail "$1" "want: $2" "got:  $3"; fi
}
rows() { "$banger" vm list -q | wc -l; }
socket() { "$banger" daemon status --format json | sed -n 's/.*"socket": *"\([^"]*\)".*/\1/p'; }

# --- before anything is there
check 'version answers without a daemon' 0 '.' "$banger" version
check 'doctor explains the accelerator' 0 'accelerator' "$banger" doctor
check 'an unknown image is refused' 241 '' "$banger" vm run --image debian-bokworm -- true
stderr_has '... with one error line' '^banger: error: .*debian-bokworm'
stderr_has '... and a hint' '^banger: hint: banger image catalog'
check 'a positional argument is reserved' 240 '' "$banger" vm run somewhere

# --- the main job
check 'vm run --rm on an empty host' 0 '^Linux ' "$banger" vm run --rm -- uname -a
is 'nothing is left of it' 0 "$(rows)"
out=$(echo 'cat /etc/os-release; exit 3' | "$banger" vm run --rm 2>/dev/null); code=$?
is 'a script on stdin: exit code' 3 "$code"
is 'a script on stdin: output' 1 "$(grep -c '^ID=debian' <<<"$out")"
check 'stdout and stderr stay apart' 0 '^out$' "$banger" vm run --rm -- sh -c 'echo out; echo err >&2'
is '... stdout has only its own' 'out' "$(cat "$work/out")"
stderr_has '... and stderr its own' '^err$'

# --- names: refused by the CLI and by the daemon, and no row is left
for name in MyVM a_b -a a- '' 'a b' "$(printf 'x%.0s' {1..64})"; do
  check "name '${name:0:12}' is refused by the CLI" 240 '' "$banger" vm create "--name=$name"
done
sock=$(socket)
for name in MyVM a_b a-; do
  reply=$(curl -s --unix-socket "$sock" -H 'Content-Type: application/json' \
    -d "{\"spec\":{\"name\":\"$name\"}}" http://banger/banger.v1.VMService/Create)
  if grep -q '"invalid_argument"' <<<"$reply"; then pass "name '$name' is refused by the daemon"
  else fail "name '$name' is refused by the daemon" "$reply"; fi
done
is 'no row is left by a bad name' 0 "$(rows)"

# --- one VM's life
check 'vm run --detach' 0 '^smoke$' "$banger" vm run --detach --name smoke
check 'its name is taken' 242 '' "$banger" vm create --name smoke
check 'vm list shows it running' 0 'smoke.*running' "$banger" vm list
check 'exec' 0 '^0$' "$banger" vm exec smoke -- id -u
check 'exec as the uid-1000 user' 0 '^1000$' "$banger" vm exec --user 1000 smoke -- id -u
check 'exec with sudo and modprobe' 0 '' "$banger" vm exec --user 1000 smoke -- sudo modprobe overlay
check 'exec in a directory with an environment' 0 '^/tmp x$' "$banger" vm exec --workdir /tmp -e A=x smoke -- sh -c 'echo $PWD $A'
check 'command not found' 127 '' "$banger" vm exec smoke -- no-such-command
check 'command not executable' 126 '' "$banger" vm exec smoke -- /etc/passwd
check 'ended by a signal' 143 '' "$banger" vm exec smoke -- sh -c 'kill -TERM $$'
head -c $((64 << 20)) /dev/urandom >"$work/blob"
is '64 MiB through cat' "$(sha256sum <"$work/blob")" "$("$banger" vm exec smoke -- cat <"$work/blob" | sha256sum)"
check 'write a file' 0 '' "$banger" vm exec smoke -- sh -c 'echo kept > /root/f && echo kept > /etc/f'

kill -9 "$("$banger" daemon status --format json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')"
check 'after kill -9 of the daemon the VM is running' 0 'smoke.*running' "$banger" vm list
check '... and exec works' 0 '^kept$' "$banger" vm exec smoke -- cat /root/f
kill -9 "$("$banger" vm show smoke --format json | sed -n 's/.*"vmm_pid": *\([0-9]*\).*/\1/p')"
for _ in $(seq 50); do "$banger" vm list | grep -q 'smoke.*stopped' && break; sleep 0.1; done
check 'after kill -9 of the VMM it shows as stopped, with a reason' 0 'killed' "$banger" vm show smoke
check 'vm start brings it back' 0 '' "$banger" vm start smoke
check '... with its disk' 0 '^kept$' "$banger" vm exec smoke -- cat /etc/f
check 'vm stop' 0 '' "$banger" vm stop smoke
check 'exec in a stopped VM' 243 '' "$banger" vm exec smoke -- true
stderr_has '... with a hint' '^banger: hint: banger vm start smoke'
check 'vm start again' 0 '' "$banger" vm start smoke
check '... the file is there' 0 '^kept$' "$banger" vm exec smoke -- cat /root/f
check 'rm of a running VM needs --force' 243 '' "$banger" vm rm smoke
check 'vm rm --force' 0 '' "$banger" vm rm --force smoke

# --- images: one static binary is a root file system, and nothing is fetched
mkdir -p "$work/tiny" && cp "$banger" "$work/tiny/banger"
tar -C "$work/tiny" -cf "$work/tiny.tar" banger
cat >"$work/tiny/Dockerfile" <<'END'
FROM scratch AS one
COPY banger /bin/banger
RUN ["/bin/banger", "config", "init"]
FROM scratch
COPY --from=one /bin/banger /bin/banger
COPY --from=one /.config /kept
ENTRYPOINT ["/bin/banger"]
CMD ["help", "exit-codes"]
END
printf 'FROM scratch\nRUN ["/none"]\n' >"$work/bad"
check 'image register' 0 '^tiny$' "$banger" image register tiny --rootfs "$work/tiny.tar"
check 'a name that is taken is refused' 242 '' "$banger" image register tiny --rootfs "$work/tiny.tar"
check 'a file that is not there is refused' 241 '' "$banger" image register other --rootfs "$work/no.tar"
check 'vm run --image of one static binary' 0 '.' "$banger" vm run --rm --image tiny -- /banger version
check 'it has no shell' 127 '' "$banger" vm run --rm --image tiny
stderr_has '... and it is said what to do' '^banger: hint: banger vm run --image tiny -- '
check 'image build' 0 '^built' "$banger" image build -t built "$work/tiny"
stderr_has '... its steps are shown' '^#[0-9]+ \[one .*\] RUN '
check 'image build again' 0 '^built' "$banger" image build -t built "$work/tiny"
stderr_has '... comes from the cache' '^#[0-9]+ CACHED'
check 'the entrypoint runs with its command' 0 '125 .*banger itself failed' "$banger" vm run --rm --image built
check 'the entrypoint runs with another, and its exit code counts' 240 '' "$banger" vm run --rm --image built -- vm crate
check 'a Dockerfile that fails names its line' 241 '' "$banger" image build -q -f "$work/bad" "$work/tiny"
stderr_has '... so that it can be mended' '^banger: error: .*:2'
check 'image tag' 0 '^built:2$' "$banger" image tag built built:2
check 'image show' 0 '^entrypoint +/bin/banger$' "$banger" image show built:2
check 'image list' 0 '^built:2 ' "$banger" image list
check 'image export' 0 '' "$banger" image export built:2 -o "$work/built.tar.zst"
check 'image pull of the bundle' 0 '^again' "$banger" image pull "$work/built.tar.zst" --name again
check 'prune needs a terminal or --yes' 240 '' "$banger" image prune
check 'image prune --dry-run' 0 '^would free |^there is nothing' "$banger" image prune --dry-run
check 'image rm' 0 '^tiny' "$banger" image rm tiny built built:2 again
check 'an image that is gone' 241 '' "$banger" image show built:2

# --- nothing is left
is 'no row' 0 "$(rows)"
is 'no directory' '' "$(ls -A "$BANGER_HOME/data/vms" "$BANGER_HOME/data/staging" | grep -v : | grep .)"
check 'daemon stop' 0 '' "$banger" daemon stop
# Only now: when nothing else is to be done the daemon prepares templates.
is 'no process' '' "$(pgrep -fa "supervisor run .*$BANGER_HOME|qemu.*$BANGER_HOME")"
is 'no socket' '' "$(find "$BANGER_HOME" -type s)"

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
