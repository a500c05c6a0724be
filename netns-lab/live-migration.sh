#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Live migration by hand: a download moves from server to server while it goes on.
# Run as root, in a clone, after `make build`.
set -eu
PATH=$(cd "$(dirname "$0")/.." && pwd)/bin:$PATH
root=$(mktemp -d)
trap 'rehome lab down; rm -rf "$root"' EXIT
dd if=/dev/urandom of="$root/file" bs=1M count=64 status=none

rehome lab up --root "$root"                 # a client, an entry, servers a, b and c

# An ordinary client downloads, at 10 MB/s so that there is time to watch.
rehome lab exec client curl --silent --limit-rate 10M --output "$root/copy" http://10.77.0.100/file &
download=$!
sleep 0.5

# Where is it? Ask every agent for its connections; then move it on, twice.
for round in 1 2; do
	for host in a b c; do
		flow=$(rehome lab exec $host rehome status --flows | awk '$2 == "files" { print $1 }')
		[ -n "$flow" ] || continue
		case $host in a) to=b ;; b) to=c ;; c) to=a ;; esac
		rehome lab exec $host rehome migrate "$flow" --to $to
		break
	done
done

wait $download
cmp "$root/file" "$root/copy"
echo "the download is whole"
