#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# More sessions than the servers can bear: who is let in, and what comes of it. Then a server that is too full gives live connections away, and whole sessions with their media. Then servers announce that they will fail.
# Run as root, in a clone, after `make build`. Takes about five minutes.
set -eu
PATH=$(cd "$(dirname "$0")/.." && pwd)/bin:$PATH

rehome lab run overload
rehome lab run shed
rehome lab run announce
