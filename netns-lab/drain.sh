#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Emptying a server before a reboot: its connections go to the others, and new ones do not come.
# Run as root, in a clone, after `make build`.
set -eu
PATH=$(cd "$(dirname "$0")/.." && pwd)/bin:$PATH
root=$(mktemp -d)
trap 'rehome lab down; rm -rf "$root"' EXIT
dd if=/dev/urandom of="$root/file" bs=1M count=32 status=none

rehome lab up --root "$root"

# Six clients download slowly; two of them are served by each server.
clients=
for n in 1 2 3 4 5 6; do
	rehome lab exec client curl --silent --limit-rate 10M --output "$root/copy$n" http://10.77.0.100/file &
	clients="$clients $!"
done
sleep 0.5

rehome lab exec a rehome drain --verbose      # moves what is there, and keeps new ones away
rehome lab exec a rehome status --flows       # nothing is left; a is draining

for c in $clients; do wait "$c"; done
for n in 1 2 3 4 5 6; do cmp "$root/file" "$root/copy$n"; done
echo "no client noticed"

rehome lab exec a rehome undrain
