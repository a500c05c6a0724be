// SPDX-License-Identifier: Apache-2.0

package synproxy

// See handoff/gate/generate.go. The headers of package cookie are included.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package synproxy -target bpfel -cc clang -cflags "-O2 -mcpu=v3 -g -Wall -Werror -nostdinc" -type record -type pending -type state -type counters synproxy bpf/synproxy.c
