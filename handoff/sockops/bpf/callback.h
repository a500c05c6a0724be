// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What the kernel declares for programs that it calls when a socket changes.
#ifndef REHOME_SOCKOPS_CALLBACK_H
#define REHOME_SOCKOPS_CALLBACK_H

#include "../../../bpf/socket.h"

enum { BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB = 4, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB = 5, BPF_SOCK_OPS_STATE_CB = 10 };
enum { BPF_SOCK_OPS_STATE_CB_FLAG = 1 << 2 };
enum { SOL_TCP = 6, TCP_BPF_IW = 1001 };

// The beginning of the kernel's structure.
struct bpf_sock_ops {
	__u32 op;
	__u32 args[4];
	__u32 family;
	__u32 remote_ip4; // addresses in network byte order
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port; // network byte order, in 32 bits
	__u32 local_port;  // host byte order
	__u32 is_fullsock;
	__u32 snd_cwnd;
	__u32 srtt_us;
	__u32 bpf_sock_ops_cb_flags;
	__u32 unused[24];
	__u64 sk;
};

// Kinds of __builtin_preserve_field_info.
enum { FIELD_BYTE_OFFSET = 0, FIELD_BYTE_SIZE = 1, FIELD_LSHIFT_U64 = 4, FIELD_RSHIFT_U64 = 5 };

#endif
