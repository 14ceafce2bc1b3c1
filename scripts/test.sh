#!/usr/bin/env bash
# The whole gate behind `make test`: the smoke test of the built binary on an empty home, then every Go test with the
# race detector, the ones on real VMs too. A test that skips itself fails the gate where CI=true.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d /tmp/btest.XXXXXX)
trap 'rm -rf "$work"' EXIT

began=$SECONDS
BANGER_SMOKE_HOME=$work/seed scripts/smoke.sh bin/banger
echo "smoke test: $((SECONDS - began)) s"

# The image and the kernel that the smoke test pulled serve the real-VM tests.
kernel=$(find "$work/seed/data/kernels" -mindepth 1 -maxdepth 1 -type d | head -n 1)
# ./test comes first: it takes longest, and the others run beside it.
began=$SECONDS code=0
BANGER_TEST_VM=1 BANGER_TEST_BINARY=$PWD/bin/banger BANGER_TEST_SEED=$work/seed BANGER_TEST_KERNEL=$kernel \
  go test -race -v -p 2 -timeout 20m ./test ./... >"$work/log" 2>&1 || code=$?
grep -aE '^(ok|FAIL|panic:|---? FAIL)' "$work/log" || true
echo "go test: $((SECONDS - began)) s, $(grep -ac '^ *--- PASS' "$work/log") passed"
if [ "$code" -ne 0 ]; then
  # What the failed tests said, without what passed.
  awk '/^=== RUN +[^\/]*$/ { said = "" } { said = said "\n" $0 } /^--- (PASS|SKIP)/ { said = "" } /^--- FAIL/ { print said; said = "" }
       /^panic:|WARNING: DATA RACE/ { raw = 200 } raw-- > 0' "$work/log" | grep -avE '^ *(=== (PAUSE|CONT)|--- PASS)' | tail -n 400
  exit "$code"
fi
if grep -aE '^ *--- SKIP' "$work/log" && [ "${CI:-}" = true ]; then
  echo 'tests skipped themselves (above); in CI each of them is required' >&2
  exit 1
fi
