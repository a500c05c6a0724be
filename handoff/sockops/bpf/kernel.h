// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The few kernel declarations the program needs, so that regenerating the object depends on no distribution's headers.
#ifndef REHOME_SOCKOPS_KERNEL_H
#define REHOME_SOCKOPS_KERNEL_H

typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

enum { BPF_MAP_TYPE_LRU_HASH = 9 };
enum { BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB = 4 };
enum { SOL_TCP = 6, TCP_BPF_IW = 1001 };

// The beginning of the kernel's structure.
struct bpf_sock_ops {
	__u32 op;
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*bpf_get_socket_cookie)(void *ctx) = (void *)46;
static long (*bpf_setsockopt)(void *ctx, int level, int option, void *value, int size) = (void *)49;

#endif
