// SPDX-License-Identifier: Apache-2.0

package reqsk

// See handoff/gate/generate.go.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package reqsk -target bpfel -cc clang -cflags "-O2 -mcpu=v3 -g -Wall -Werror -nostdinc" -type slot -type op -type result -type outcome reqsk bpf/reqsk.c
