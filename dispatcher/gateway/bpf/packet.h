// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// From a frame to a flow key. What is not a TCP segment or UDP datagram over untagged IPv4 or IPv6 is "not ours" and goes
// on untouched: VLAN tags (name the VLAN's own interface), IPv6 extension headers, runts, lengths that contradict one another.
#ifndef REHOME_GATEWAY_PACKET_H
#define REHOME_GATEWAY_PACKET_H

#include "table.h"

struct packet {
	struct flow_key flow;
	__u8 fragment; // a first fragment: the flow is known and the payload is not whole
	__u8 payload;  // data, SYN, FIN or RST: more than an acknowledgement
	__u8 syn;
};

// ports reads the transport header at off, of a packet that has rest bytes from there.
static __always_inline int transport(struct __sk_buff *skb, struct packet *p, __u32 off, __u32 rest)
{
	struct tcp_head t = {};
	__u32 header;

	if (p->flow.proto == PROTO_UDP) {
		if (rest < UDP_HEADER || bpf_skb_load_bytes(skb, off, &t, UDP_HEADER))
			return 0;
		p->payload = 1;
	} else {
		if (rest < 20 || bpf_skb_load_bytes(skb, off, &t, sizeof(t)))
			return 0;
		header = (t.offset >> 4) * 4;
		if (header < 20 || (header > rest && !p->fragment))
			return 0;
		p->syn = t.flags & TCP_SYN ? 1 : 0;
		p->payload = rest > header || t.flags & (TCP_SYN | TCP_FIN | TCP_RST);
	}
	p->flow.server_port = t.src;
	p->flow.client_port = t.dst;
	return 1;
}

static __always_inline int parse4(struct __sk_buff *skb, struct packet *p)
{
	struct ipv4 ip;
	__u32 header, length, room = skb->len - sizeof(struct ethernet);

	if (skb->len < sizeof(struct ethernet) + sizeof(ip) || bpf_skb_load_bytes(skb, sizeof(struct ethernet), &ip, sizeof(ip)))
		return 0;
	if (ip.version_ihl >> 4 != 4 || (ip.protocol != PROTO_TCP && ip.protocol != PROTO_UDP))
		return 0;
	if (ip.fragment & bpf_htons(0x1fff)) // a later fragment names no ports
		return 0;
	p->fragment = ip.fragment & bpf_htons(0x2000) ? 1 : 0;
	header = (ip.version_ihl & 15) * 4;
	length = bpf_ntohs(ip.length);
	// A GSO packet above 64 KiB says 0.
	if (!length && skb->gso_segs)
		length = room;
	if (header < 20 || length < header || length > room)
		return 0;
	p->flow.family = 4;
	p->flow.proto = ip.protocol;
	p->flow.server[0] = ip.src;
	p->flow.client[0] = ip.dst;
	return transport(skb, p, sizeof(struct ethernet) + header, length - header);
}

static __always_inline int parse6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6 ip;
	__u32 length, off = sizeof(struct ethernet) + sizeof(ip);

	if (skb->len < off || bpf_skb_load_bytes(skb, sizeof(struct ethernet), &ip, sizeof(ip)))
		return 0;
	if (ip.version_class >> 4 != 6 || (ip.next != PROTO_TCP && ip.next != PROTO_UDP))
		return 0;
	length = bpf_ntohs(ip.length);
	if (!length && skb->gso_segs)
		length = skb->len - off;
	if (length > skb->len - off)
		return 0;
	p->flow.family = 6;
	p->flow.proto = ip.next;
	__builtin_memcpy(p->flow.server, ip.src, 16);
	__builtin_memcpy(p->flow.client, ip.dst, 16);
	return transport(skb, p, off, length);
}

// parse returns 0 when the frame is none of ours. p must be zeroed.
static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	if (skb->vlan_present)
		return 0;
	if (skb->protocol == bpf_htons(ETH_IPV4))
		return parse4(skb, p);
	if (skb->protocol == bpf_htons(ETH_IPV6))
		return parse6(skb, p);
	return 0;
}

#endif
