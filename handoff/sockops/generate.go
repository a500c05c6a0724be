// SPDX-License-Identifier: Apache-2.0

package sockops

// See handoff/gate/generate.go.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package sockops -target bpfel -cc clang -cflags "-O2 -mcpu=v3 -g -Wall -Werror -nostdinc" -type seed seed bpf/seed.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package sockops -target bpfel -cc clang -cflags "-O2 -mcpu=v3 -g -Wall -Werror -nostdinc" -type service -type end ended bpf/ended.c
