#!/bin/sh
# Regenerates the code of the wires. Needs protoc; the two plugins are built at the versions of go.mod.
set -eu
cd "$(dirname "$0")/.."
bin=$(mktemp -d); trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
PATH=$bin:$PATH protoc -I proto --go_out=. --go_opt=module=banger --connect-go_out=. --connect-go_opt=module=banger proto/banger/v1/*.proto
