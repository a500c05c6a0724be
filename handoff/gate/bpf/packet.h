// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// From a frame to a flow key. Everything that is not a whole TCP segment over untagged IPv4 or IPv6 is "not ours" and
// goes on untouched: VLAN tags (gate the VLAN's own interface), fragments (the later ones name no ports, and holding
// only the first would reorder), runts, lengths that contradict one another, source routes not yet at their end.
#ifndef REHOME_GATE_PACKET_H
#define REHOME_GATE_PACKET_H

#include "table.h"

struct packet {
	union {
		struct key4 k4;
		struct key6 k6;
	};
	__u8 family;  // 4, 6; 0: not ours
	__u8 flags;   // TCP
	__u8 payload; // carries data, SYN or FIN: occupies sequence space
};

enum { EXTENSIONS = 4 };

// ports fills in what the TCP header says. out: the packet leaves, so that source and local are one.
static __always_inline void tcp_fields(struct packet *p, const struct tcp_head *t, int out, __u32 rest)
{
	__u16 local = out ? t->src : t->dst, remote = out ? t->dst : t->src;
	__u32 header = (t->offset >> 4) * 4;

	if (header < 20 || header > rest)
		return;
	p->flags = t->flags;
	p->payload = rest > header || (t->flags & (TCP_SYN | TCP_FIN));
	if (p->family == 4) {
		p->k4.local_port = local;
		p->k4.remote_port = remote;
		p->k4.proto = PROTO_TCP;
	} else {
		p->k6.local_port = local;
		p->k6.remote_port = remote;
		p->k6.proto = PROTO_TCP;
	}
}

static __always_inline int parse4(struct __sk_buff *skb, struct packet *p, int out)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv4 *ip = data + sizeof(struct ethernet);
	struct tcp_head *t = (void *)(ip + 1);
	struct tcp_head far;
	__u32 header, length;

	if ((void *)(t + 1) > end)
		return 0;
	if (ip->version_ihl >> 4 != 4 || ip->protocol != PROTO_TCP || ip->fragment & bpf_htons(0x3fff))
		return 0;
	header = (ip->version_ihl & 15) * 4;
	length = bpf_ntohs(ip->length);
	// A GSO packet above 64 KiB says 0.
	if (!length && skb->gso_segs)
		length = skb->len - sizeof(struct ethernet);
	if (header < 20 || length < header + 20 || length > skb->len - sizeof(struct ethernet))
		return 0;
	p->family = 4;
	p->k4.local = out ? ip->src : ip->dst;
	p->k4.remote = out ? ip->dst : ip->src;
	if (header != sizeof(*ip)) {
		if (bpf_skb_load_bytes(skb, sizeof(struct ethernet) + header, &far, sizeof(far)))
			return 0;
		tcp_fields(p, &far, out, length - header);
	} else {
		tcp_fields(p, t, out, length - header);
	}
	return p->k4.proto;
}

static __always_inline int parse6(struct __sk_buff *skb, struct packet *p, int out)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6 *ip = data + sizeof(struct ethernet);
	__u32 off = sizeof(struct ethernet) + sizeof(*ip), stop, length;
	struct tcp_head t;
	__u8 next, ext[4];

	if ((void *)(ip + 1) > end || ip->version_class >> 4 != 6)
		return 0;
	length = bpf_ntohs(ip->length);
	if (!length && skb->gso_segs)
		length = skb->len - off;
	stop = off + length;
	if (length < 20 || stop > skb->len)
		return 0;
	next = ip->next;
	p->family = 6;
	__builtin_memcpy(p->k6.local, out ? ip->src : ip->dst, 16);
	__builtin_memcpy(p->k6.remote, out ? ip->dst : ip->src, 16);
#pragma unroll
	for (int i = 0; i < EXTENSIONS; i++) {
		if (next == PROTO_TCP)
			break;
		if (next != PROTO_HOPOPTS && next != PROTO_ROUTING && next != PROTO_DSTOPTS && next != PROTO_FRAGMENT)
			return 0;
		if (bpf_skb_load_bytes(skb, off, ext, sizeof(ext)))
			return 0;
		if (next == PROTO_FRAGMENT) {
			// An atomic fragment (RFC 6946) is a whole packet: offset 0, none to follow.
			if (ext[2] || ext[3] & 0xf9)
				return 0;
			off += 8;
		} else {
			if (next == PROTO_ROUTING && ext[3])
				return 0;
			off += (ext[1] + 1) * 8;
		}
		next = ext[0];
	}
	if (next != PROTO_TCP || off + 20 > stop || bpf_skb_load_bytes(skb, off, &t, sizeof(t)))
		return 0;
	tcp_fields(p, &t, out, stop - off);
	return p->k6.proto;
}

// parse returns 0 when the frame is none of ours. p must be zeroed.
static __always_inline int parse(struct __sk_buff *skb, struct packet *p, int out)
{
	__u32 want;

	if (skb->vlan_present)
		return 0;
	if (skb->protocol == bpf_htons(ETH_IPV4))
		want = sizeof(struct ethernet) + sizeof(struct ipv4) + 20;
	else if (skb->protocol == bpf_htons(ETH_IPV6))
		want = sizeof(struct ethernet) + sizeof(struct ipv6) + 20;
	else
		return 0;
	if (skb->len < want)
		return 0;
	// Drivers may leave everything after the Ethernet header in fragments.
	if (skb->data + want > skb->data_end && bpf_skb_pull_data(skb, want))
		return 0;
	return skb->protocol == bpf_htons(ETH_IPV4) ? parse4(skb, p, out) : parse6(skb, p, out);
}

static __always_inline struct flow *find(struct packet *p)
{
	return p->family == 4 ? bpf_map_lookup_elem(&flows4, &p->k4) : bpf_map_lookup_elem(&flows6, &p->k6);
}

#endif
