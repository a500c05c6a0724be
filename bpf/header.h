// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The headers of packets, in network order.
#ifndef REHOME_HEADER_H
#define REHOME_HEADER_H

#include "kernel.h"

struct ethernet {
	__u8 dst[6], src[6];
	__u16 type;
};

struct ipv4 {
	__u8 version_ihl, tos;
	__u16 length, id, fragment;
	__u8 ttl, protocol;
	__u16 checksum;
	__u32 src, dst;
};

struct ipv6 {
	__u8 version_class, class_label, label[2];
	__u16 length;
	__u8 next, hops;
	__u32 src[4], dst[4];
};

struct tcp {
	__u16 src, dst;
	__u32 seq, ack;
	__u8 offset, flags;
	__u16 window, checksum, urgent;
} __attribute__((packed, aligned(2)));

// struct tcp_head is what of a TCP header says whose segment it is and what for; UDP's begins with the same ports.
struct tcp_head {
	__u16 src, dst;
	__u32 seq, ack;
	__u8 offset, flags;
} __attribute__((packed, aligned(2)));

enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_PSH = 8, TCP_ACK = 16, TCP_URG = 32, TCP_ECE = 64, TCP_CWR = 128 };
enum { UDP_HEADER = 8 };
enum { ETH_IPV4 = 0x0800, ETH_ARP = 0x0806, ETH_IPV6 = 0x86dd };
enum {
	PROTO_HOPOPTS = 0,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_ICMPV6 = 58,
	PROTO_DSTOPTS = 60,
};

#endif
