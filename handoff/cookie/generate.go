// SPDX-License-Identifier: Apache-2.0

package cookie

// See handoff/gate/generate.go.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package cookie -target bpfel -cc clang -cflags "-O2 -mcpu=v3 -g -Wall -Werror -nostdinc" -type setting -type service -type flow -type known -type counters -type reason -type phase cookie bpf/cookie.c
