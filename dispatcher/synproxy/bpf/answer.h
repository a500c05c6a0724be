// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The answer to a SYN: the SYN itself, rewritten and sent back.
#ifndef REHOME_SYNPROXY_ANSWER_H
#define REHOME_SYNPROXY_ANSWER_H

#include "../../../handoff/cookie/bpf/cookie.h"

// A client with timestamps is told of all options, one without only of the MSS.
struct synack {
	struct tcp tcp;
	__u8 mss[4];
	__u8 sack_timestamps[12];
	__u8 scale[4];
} __attribute__((packed, aligned(2)));

enum { SYNACK_SHORT = sizeof(struct tcp) + 4 };

static __always_inline void put_word(__u8 *b, __u32 v)
{
	b[0] = v >> 24;
	b[1] = v >> 16;
	b[2] = v >> 8;
	b[3] = v;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// choose decides on the options of the connection: our timestamp.
static __always_inline __u32 choose(const struct setting *c, const struct segment *s)
{
	__u16 mss = s->mss ? s->mss : mss_of(0, s->flow.family);
	__u32 choice = (__u32)mss << CHOICE_MSS_SHIFT | s->scale;

	if (s->sack)
		choice |= CHOICE_SACK;
	// A client that offers more accurate ECN takes this for classic ECN (RFC 3168, 6.1.1).
	if (c->flags & SETTING_ECN && (s->flags & (TCP_ECE | TCP_CWR)) == (TCP_ECE | TCP_CWR))
		choice |= CHOICE_ECN;
	return (milliseconds() >> 1) << CHOICE_BITS | choice;
}

static __always_inline void fill(struct synack *a, const struct setting *c, const struct segment *s)
{
	struct sealed v = {
		.isn = s->seq, .period = period(c), .index = mss_index(s->mss, s->flow.family), .timestamps = s->timestamps,
		.timestamp = s->timestamps ? choose(c, s) : 0,
	};
	__u16 mss = s->flow.family == 6 ? c->mss6 : c->mss4;

	a->tcp.src = s->flow.local_port;
	a->tcp.dst = s->flow.remote_port;
	a->tcp.seq = bpf_htonl(cookie_of(&s->flow, &c->secrets[0], &v));
	a->tcp.ack = bpf_htonl(s->seq + 1);
	a->tcp.flags = TCP_SYN | TCP_ACK | (v.timestamp & CHOICE_ECN ? TCP_ECE : 0);
	a->tcp.window = bpf_htons((__u16)c->window);
	a->mss[0] = 2;
	a->mss[1] = 4;
	a->mss[2] = mss >> 8;
	a->mss[3] = mss;
	a->tcp.offset = SYNACK_SHORT / 4 << 4;
	if (!s->timestamps)
		return;
	a->tcp.offset = sizeof(*a) / 4 << 4;
	a->sack_timestamps[0] = v.timestamp & CHOICE_SACK ? 4 : 1;
	a->sack_timestamps[1] = v.timestamp & CHOICE_SACK ? 2 : 1;
	a->sack_timestamps[2] = 8;
	a->sack_timestamps[3] = 10;
	put_word(a->sack_timestamps + 4, v.timestamp);
	put_word(a->sack_timestamps + 8, s->tsval);
	a->scale[0] = 1;
	a->scale[1] = s->scale == NO_SCALE ? 1 : 3;
	a->scale[2] = s->scale == NO_SCALE ? 1 : 3;
	a->scale[3] = s->scale == NO_SCALE ? 1 : c->scale;
}

static __always_inline int swap_ip4(struct __sk_buff *skb, const struct segment *s, __u32 length)
{
	struct ipv4 ip = {
		.version_ihl = 0x45, .length = bpf_htons(sizeof(ip) + length), .fragment = bpf_htons(0x4000), .ttl = 64, .protocol = PROTO_TCP,
		.src = s->flow.local[0], .dst = s->flow.remote[0],
	};

	ip.checksum = fold(bpf_csum_diff(0, 0, (void *)&ip, sizeof(ip), 0));
	return bpf_skb_store_bytes(skb, sizeof(struct ethernet), &ip, sizeof(ip), 0);
}

static __always_inline int swap_ip6(struct __sk_buff *skb, const struct segment *s, __u32 length)
{
	struct ipv6 ip = {.version_class = 0x60, .length = bpf_htons(length), .next = PROTO_TCP, .hops = 64};

	__builtin_memcpy(ip.src, s->flow.local, 16);
	__builtin_memcpy(ip.dst, s->flow.remote, 16);
	return bpf_skb_store_bytes(skb, sizeof(struct ethernet), &ip, sizeof(ip), 0);
}

// answer returns 0 when the packet is the answer now. s's options have been read. The checksum is corrected by what changes, so that it is right
// whether the packet has a complete one or leaves that to the hardware; for the same reason the SYN must bring no data.
static __always_inline int answer(struct __sk_buff *skb, const struct setting *c, const struct segment *s)
{
	__u32 length = s->timestamps ? sizeof(struct synack) : SYNACK_SHORT, at = s->at, old = s->header;
	struct synack a = {};
	__u8 before[60] = {}, mac[12], swapped[12];
	__u64 sum;

	if (s->payload || old < 20 || old > sizeof(before))
		return -1;
	if (bpf_skb_load_bytes(skb, at, before, old) || bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)))
		return -1;
	fill(&a, c, s);
	// Neither the checksum itself, nor the addresses and ports, which change places, count.
	*(__u16 *)(before + offset_of(struct tcp, checksum)) = 0;
	sum = bpf_csum_diff((void *)before, sizeof(before), (void *)&a, sizeof(a), 0);
	a.tcp.checksum = s->checksum;
	__builtin_memcpy(swapped, mac + 6, 6);
	__builtin_memcpy(swapped + 6, mac, 6);
	if (bpf_skb_change_tail(skb, at + length, 0))
		return -1;
	if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
		return -1;
	if (s->flow.family == 6 ? swap_ip6(skb, s, length) : swap_ip4(skb, s, length))
		return -1;
	if (s->timestamps ? bpf_skb_store_bytes(skb, at, &a, sizeof(a), 0) : bpf_skb_store_bytes(skb, at, &a, SYNACK_SHORT, 0))
		return -1;
	at += offset_of(struct tcp, checksum);
	if (bpf_l4_csum_replace(skb, at, 0, sum, 0))
		return -1;
	return bpf_l4_csum_replace(skb, at, bpf_htons((__u16)old), bpf_htons((__u16)length), BPF_F_PSEUDO_HDR | 2);
}

#endif
