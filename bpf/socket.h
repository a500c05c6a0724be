// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The kernel's own structures of sockets, read through CO-RE: only names matter, the loader puts in this kernel's offsets. A field that a kernel lacks
// fails only a program that reads it.
#ifndef REHOME_SOCKET_H
#define REHOME_SOCKET_H

#include "kernel.h"

#define __ksym __attribute__((section(".ksyms")))
#define __core __attribute__((preserve_access_index))

// enum in include/net/tcp_states.h.
enum { TCP_ESTABLISHED = 1, TCP_SYN_RECV = 3, TCP_TIME_WAIT = 6, TCP_CLOSE = 7, TCP_LISTEN = 10 };

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
	__u8 repair : 1;
} __core;

struct inet_timewait_sock {
	struct sock_common __tw_common;
} __core;

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
	__u32 tw_ts_recent;
} __core;

// struct bpf_tcp_req_attrs is the argument of the kfunc, of fixed layout.
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

// Linux 6.9. struct sock must be complete here: the loader refuses a forward declaration. An object that does not call it does not ask for it.
extern int bpf_sk_assign_tcp_reqsk(struct __sk_buff *skb, struct sock *sk, struct bpf_tcp_req_attrs *attrs, int attrs__sz) __ksym;

#endif
