// SPDX-License-Identifier: Apache-2.0

package gateway

// The object is committed, so that `go build` needs no clang. Regenerated with clang 14, it is byte-identical: the flags
// are fixed, and the headers of /bpf stand in for the distribution's headers.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package gateway -target bpfel -cc clang -cflags "-O2 -mcpu=v3 -g -Wall -Werror -nostdinc" -type service_key -type service -type source_key -type flow_key -type port -type beat -type counters gateway bpf/gateway.c
