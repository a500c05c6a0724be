#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Moving a whole process by hand: Python's web server, which knows nothing of rehome, moves to another host and back during a download.
# Run as root, in a clone, after `make build` and `make deps-criu`.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
PATH=$top/bin:$PATH
export REHOME_CRIU="${REHOME_CRIU:-$top/.cache/criu/criu}"
root=$(mktemp -d)
trap 'rehome lab down; rm -rf "$root"' EXIT
dd if=/dev/urandom of="$root/file" bs=1M count=64 status=none

rehome lab up --processes --servers 2        # a client, an entry and two hosts for servers; none is started

# The server runs on host a.
rehome lab exec a setsid sh -c 'echo $$ >"$1/pid"; exec python3 -m http.server --directory "$1" 80' sh "$root" >"$root/log" 2>&1 </dev/null &
until rehome lab exec client curl --silent --fail --output /dev/null http://10.77.0.100/pid; do sleep 0.1; done
pid=$(cat "$root/pid")

# An ordinary client downloads, at 10 MB/s so that there is time to watch.
rehome lab exec client curl --silent --limit-rate 10M --output "$root/copy" http://10.77.0.100/file &
download=$!
sleep 1

from=a
for to in b a; do
	rehome lab exec $from rehome migrate --process "$pid" --to $to --output json | tee "$root/moved"
	pid=$(sed -n 's/.*"newPid": *\([0-9]*\).*/\1/p' "$root/moved")
	from=$to
	sleep 1
done

wait $download
cmp "$root/file" "$root/copy"
echo "the download is whole"
