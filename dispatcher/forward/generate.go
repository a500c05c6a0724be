// SPDX-License-Identifier: Apache-2.0

package forward

// The object is committed, so that `go build` needs no clang. Regenerated with clang 14, it is byte-identical: the flags
// are fixed, and the headers of /bpf stand in for the distribution's headers. -mcpu=v3 is needed for compare-and-exchange.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package forward -target bpfel -cc clang -cflags "-O2 -mcpu=v3 -g -Wall -Werror -nostdinc" -type operation -type batch -type sweep -type key -type node -type service_key -type service -type port -type counters -type setting -type code -type policy -type meter -type promise -type control forward bpf/forward.c
