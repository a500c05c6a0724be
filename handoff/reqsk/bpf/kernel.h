// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The few kernel declarations the program needs, so that regenerating the object depends on no distribution's headers.
// The structures below "Kernel types" are read through CO-RE: only names matter, the loader puts in this kernel's offsets.
#ifndef REHOME_REQSK_KERNEL_H
#define REHOME_REQSK_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __always_inline inline __attribute__((always_inline))
#define __ksym __attribute__((section(".ksyms")))
#define __core __attribute__((preserve_access_index))

enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6 };
enum { BPF_F_MMAPABLE = 1 << 10 };
#define BPF_F_CURRENT_NETNS ((__u64)-1)

enum { TCX_NEXT = -1, TCX_DROP = 2 };

// enum in include/net/tcp_states.h.
enum { TCP_ESTABLISHED = 1, TCP_SYN_RECV = 3, TCP_TIME_WAIT = 6, TCP_LISTEN = 10 };

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
};

// The head of struct bpf_sock; the state is the tenth word of it.
struct bpf_sock {
	__u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4];
	__u16 src_port, : 16;
	__u16 dst_port, : 16;
	__u32 dst_ip4, dst_ip6[4], state;
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_sk_release)(void *sk) = (void *)86;
static struct bpf_sock *(*bpf_skc_lookup_tcp)(void *ctx, void *tuple, __u32 size, __u64 netns, __u64 flags) = (void *)99;
static struct tcp_sock *(*bpf_skc_to_tcp_sock)(void *sk) = (void *)137;
static struct tcp_timewait_sock *(*bpf_skc_to_tcp_timewait_sock)(void *sk) = (void *)138;
static struct mptcp_sock *(*bpf_skc_to_mptcp_sock)(void *sk) = (void *)196;

// Kernel types.

struct netns_ipv4 {
	__u8 sysctl_tcp_syncookies;
} __core;

struct net {
	struct netns_ipv4 ipv4;
} __core;

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	__u32 skc_tw_rcv_nxt;
} __core;

struct sock {
	struct sock_common __sk_common;
	int sk_rcvbuf;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
} __core;

struct tcp_sock {
	__u32 rcv_nxt;
	__u32 rcv_wup;
	__u32 rcv_wnd;
	__u32 snd_nxt;
	__u32 window_clamp;
	__u8 scaling_ratio;
} __core;

struct inet_timewait_sock {
	struct sock_common __tw_common;
} __core;

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
} __core;

// struct bpf_tcp_req_attrs is a kfunc's argument, of fixed layout.
struct bpf_tcp_req_attrs {
	__u32 rcv_tsval;
	__u32 rcv_tsecr;
	__u16 mss;
	__u8 rcv_wscale;
	__u8 snd_wscale;
	__u8 ecn_ok;
	__u8 wscale_ok;
	__u8 sack_ok;
	__u8 tstamp_ok;
	__u8 usec_ts_ok;
	__u8 reserved[3];
};

// struct sock must be complete here: the loader refuses a forward declaration (KERNEL 18).
extern int bpf_sk_assign_tcp_reqsk(struct __sk_buff *skb, struct sock *sk, struct bpf_tcp_req_attrs *attrs, int attrs__sz) __ksym;

#endif
