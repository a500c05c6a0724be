#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Agents come and go, connections stay: an agent that is stopped leaves paths and applications alone.
# Run as root, in a clone, after `make build`.
set -eu
PATH=$(cd "$(dirname "$0")/.." && pwd)/bin:$PATH
root=$(mktemp -d)
trap 'rehome lab down; rm -rf "$root"' EXIT
dd if=/dev/urandom of="$root/file" bs=1M count=64 status=none

rehome lab up --root "$root"
rehome lab exec client curl --silent --limit-rate 6M --output "$root/copy" http://10.77.0.100/file &
download=$!
sleep 0.5

# Restart the agents of the entry and of every server, one after the other.
for host in entry a b c; do
	rehome lab restart-agent $host
done

# The new agents know the connections, and move them.
for host in a b c; do
	rehome lab exec $host rehome migrate --all
done

wait $download
cmp "$root/file" "$root/copy"
echo "the download is whole"
