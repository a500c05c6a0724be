// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// From a frame to a flow key, for tcx and XDP alike. What is "not ours" goes on untouched: VLAN tags (name the VLAN's own
// interface), ARP, neighbour discovery, runts, lengths that contradict one another, source routes.
#ifndef REHOME_FORWARD_PACKET_H
#define REHOME_FORWARD_PACKET_H

#include "table.h"

enum kind {
	KIND_OTHER = 0, // not ours
	KIND_FLOW,	// TCP or UDP, whole or a first fragment
	KIND_LATER,	// a later fragment: no ports
	KIND_ERROR,	// an ICMP error; the key is that of the packet it is about
};

struct packet {
	struct key key;
	struct fragment_key fragment;
	__u8 kind;
	__u8 flags; // TCP
	__u8 first; // fragment
	__u8 bare;  // TCP: an acknowledgement and nothing else
};

struct frame {
	void *context;
	void *data, *end;
	__u32 length;
	__u32 segments; // of a GSO packet, whose own length field may say 0
	__u32 ifindex;
};

enum { EXTENSIONS = 4 };

// XDP is a constant wherever it is passed, so that only one of the calls remains.
static __always_inline long load(int xdp, void *context, __u32 off, void *to, __u32 len)
{
	return xdp ? bpf_xdp_load_bytes(context, off, to, len) : bpf_skb_load_bytes(context, off, to, len);
}

// length_of is the frame's whole length, of which XDP shows the first part.
static __always_inline __u32 length_of(int xdp, struct frame *f)
{
	return xdp ? bpf_xdp_get_buff_len(f->context) : f->length;
}

struct transport {
	__u32 ports;
	__u16 length, udp_checksum;
	__u32 ack;
	__u8 offset, flags;
} __attribute__((packed, aligned(2)));

// transport reads the ports of the TCP or UDP header at off; stop is where the packet ends.
static __always_inline int transport(int xdp, struct frame *f, struct packet *p, __u32 off, __u32 stop)
{
	struct transport *near = f->data + off, far = {}, *t = near;
	__u32 rest = stop - off, header;

	if (off > stop || rest < 8)
		return KIND_OTHER;
	if (off > 64 || (void *)(near + 1) > f->end) {
		// Behind options or headers, short, or not in the first part of the buffer.
		if (load(xdp, f->context, off, &far, 8))
			return KIND_OTHER;
		t = &far;
		if (p->key.proto == PROTO_TCP && load(xdp, f->context, off, &far, sizeof(far)))
			return KIND_OTHER;
	}
	if (p->key.proto == PROTO_UDP) {
		header = bpf_ntohs(t->length);
		if (!p->first && !(f->segments && !header) && (header < 8 || header > rest))
			return KIND_OTHER;
	} else {
		header = (t->offset >> 4) * 4;
		if (header < 20 || header > rest)
			return KIND_OTHER;
		p->flags = t->flags;
		p->bare = header == rest && !(t->flags & (TCP_SYN | TCP_FIN | TCP_RST));
	}
	p->key.ports = t->ports;
	return KIND_FLOW;
}

struct options {
	__u8 bytes[40];
	__u8 next;   // offset of the next option
	__u8 routed; // a source route was found
};

static long option(__u32 i, struct options *o)
{
	__u8 type;

	if (i >= sizeof(o->bytes) - 1)
		return 1;
	if (i < o->next)
		return 0;
	type = o->bytes[i];
	if (type == 0)
		return 1;
	if (type == 131 || type == 137) {
		o->routed = 1;
		return 1;
	}
	o->next = i + (type == 1 ? 1 : o->bytes[i + 1] < 2 ? 2 : o->bytes[i + 1]);
	return 0;
}

// source_routed looks through n bytes of IPv4 options, 4 to 40, at off.
static __always_inline int source_routed(int xdp, struct frame *f, __u32 off, __u32 n)
{
	struct options o = {};

	if (n < 1 || n > sizeof(o.bytes) || load(xdp, f->context, off, o.bytes, n))
		return 1;
	bpf_loop(sizeof(o.bytes), option, &o, 0);
	return o.routed;
}

// error4 reads the key of the packet that an ICMP error at off is about: one that a server sent from the service's
// address, which is also where the error goes.
static __always_inline int error4(int xdp, struct frame *f, struct packet *p, __u32 off, __u32 stop)
{
	struct ipv4 ip;
	__u32 ports, header;
	__u8 type;

	if (load(xdp, f->context, off, &type, 1))
		return KIND_OTHER;
	// Destination unreachable (also: fragmentation needed), time exceeded, parameter problem.
	if (type != 3 && type != 11 && type != 12)
		return KIND_OTHER;
	off += 8;
	if (off + sizeof(ip) + 8 > stop || load(xdp, f->context, off, &ip, sizeof(ip)))
		return KIND_OTHER;
	header = (ip.version_ihl & 15) * 4;
	if (ip.version_ihl >> 4 != 4 || header < 20 || (ip.protocol != PROTO_TCP && ip.protocol != PROTO_UDP) ||
	    ip.fragment & bpf_htons(0x1fff) || ip.src != p->key.local[0])
		return KIND_OTHER;
	off += header;
	if (off + 8 > stop || load(xdp, f->context, off, &ports, 4))
		return KIND_OTHER;
	p->key.remote[0] = ip.dst;
	p->key.proto = ip.protocol;
	p->key.ports = ports << 16 | ports >> 16; // the server's packet has its own port first
	return KIND_ERROR;
}

static __always_inline int parse4(int xdp, struct frame *f, struct packet *p)
{
	struct ipv4 *ip = f->data + sizeof(struct ethernet);
	__u32 header, length, fragment;

	if ((void *)(ip + 1) > f->end || ip->version_ihl >> 4 != 4)
		return KIND_OTHER;
	if (ip->protocol != PROTO_TCP && ip->protocol != PROTO_UDP && ip->protocol != PROTO_ICMP)
		return KIND_OTHER;
	header = (ip->version_ihl & 15) * 4;
	length = bpf_ntohs(ip->length);
	// A GSO packet above 64 KiB says 0.
	if (!length && f->segments)
		length = f->length - sizeof(struct ethernet);
	if (header < 20 || length < header + 8)
		return KIND_OTHER;
	if (length > f->length - sizeof(struct ethernet) && length > length_of(xdp, f) - sizeof(struct ethernet))
		return KIND_OTHER;
	p->key.family = 4;
	p->key.proto = ip->protocol;
	p->key.local[0] = ip->dst;
	p->key.remote[0] = ip->src;
	fragment = bpf_ntohs(ip->fragment);
	if (header != sizeof(*ip) && source_routed(xdp, f, sizeof(struct ethernet) + sizeof(*ip), header - sizeof(*ip)))
		return KIND_OTHER;
	if (fragment & 0x3fff) {
		if (p->key.proto == PROTO_ICMP)
			return KIND_OTHER;
		p->fragment.src[0] = p->key.remote[0];
		p->fragment.dst[0] = p->key.local[0];
		p->fragment.id = ip->id;
		p->fragment.proto = p->key.proto;
		p->fragment.family = 4;
		if (fragment & 0x1fff)
			return KIND_LATER;
		p->first = 1;
	}
	if (p->key.proto == PROTO_ICMP)
		return error4(xdp, f, p, sizeof(struct ethernet) + header, sizeof(struct ethernet) + length);
	return transport(xdp, f, p, sizeof(struct ethernet) + header, sizeof(struct ethernet) + length);
}

// chain walks IPv6 extension headers.
struct chain {
	__u32 off;
	__u32 id; // of a fragment
	__u8 next;
	__u8 fragment; // 1: the first, 2: a later one
	__u8 proto;    // the first header of what was fragmented
};

// follow stops at TCP, UDP, ICMPv6 or a later fragment and returns 0; else, -1.
static __always_inline int follow(int xdp, void *context, struct chain *c)
{
	__u8 ext[8];

	for (int i = 0; i <= EXTENSIONS; i++) {
		if (c->next == PROTO_TCP || c->next == PROTO_UDP || c->next == PROTO_ICMPV6)
			return 0;
		if (i == EXTENSIONS)
			return -1;
		if (c->next != PROTO_HOPOPTS && c->next != PROTO_ROUTING && c->next != PROTO_DSTOPTS && c->next != PROTO_FRAGMENT)
			return -1;
		if (load(xdp, context, c->off, ext, sizeof(ext)))
			return -1;
		if (c->next == PROTO_FRAGMENT) {
			// An atomic fragment (RFC 6946) is a whole packet.
			__builtin_memcpy(&c->id, ext + 4, 4);
			c->proto = ext[0];
			if (ext[2] || ext[3] & 0xf8) {
				c->fragment = 2;
				return 0;
			}
			c->fragment = ext[3] & 1;
			c->off += 8;
		} else {
			if (c->next == PROTO_ROUTING && ext[3])
				return -1;
			c->off += (ext[1] + 1) * 8;
		}
		c->next = ext[0];
	}
	return -1;
}

static __noinline int follow_skb(struct __sk_buff *skb, struct chain *c) { return follow(0, skb, c); }
static __noinline int follow_xdp(struct xdp_md *xdp, struct chain *c) { return follow(1, xdp, c); }

static __always_inline int walk(int xdp, struct frame *f, struct chain *c)
{
	return xdp ? follow_xdp(f->context, c) : follow_skb(f->context, c);
}

static __always_inline int error6(int xdp, struct frame *f, struct packet *p, __u32 off, __u32 stop)
{
	struct chain c = {};
	struct ipv6 ip;
	__u32 ports;
	__u8 type;

	if (load(xdp, f->context, off, &type, 1))
		return KIND_OTHER;
	if (type < 1 || type > 4)
		return KIND_OTHER;
	off += 8;
	if (off + sizeof(ip) + 8 > stop || load(xdp, f->context, off, &ip, sizeof(ip)) || ip.version_class >> 4 != 6)
		return KIND_OTHER;
	if (ip.src[0] != p->key.local[0] || ip.src[1] != p->key.local[1] || ip.src[2] != p->key.local[2] || ip.src[3] != p->key.local[3])
		return KIND_OTHER;
	c.off = off + sizeof(ip);
	c.next = ip.next;
	if (walk(xdp, f, &c) || c.fragment > 1 || c.next == PROTO_ICMPV6)
		return KIND_OTHER;
	if (c.off + 8 > stop || load(xdp, f->context, c.off, &ports, 4))
		return KIND_OTHER;
	__builtin_memcpy(p->key.remote, ip.dst, 16);
	p->key.proto = c.next;
	p->key.ports = ports << 16 | ports >> 16;
	return KIND_ERROR;
}

static __always_inline int parse6(int xdp, struct frame *f, struct packet *p)
{
	struct ipv6 *ip = f->data + sizeof(struct ethernet);
	__u32 stop, length;
	struct chain c = {};

	if ((void *)(ip + 1) > f->end || ip->version_class >> 4 != 6)
		return KIND_OTHER;
	length = bpf_ntohs(ip->length);
	c.off = sizeof(struct ethernet) + sizeof(*ip);
	if (!length && f->segments)
		length = f->length - c.off;
	stop = c.off + length;
	if (length < 8 || (stop > f->length && stop > length_of(xdp, f)))
		return KIND_OTHER;
	c.next = ip->next;
	p->key.family = 6;
	__builtin_memcpy(p->key.local, ip->dst, 16);
	__builtin_memcpy(p->key.remote, ip->src, 16);
	if (c.next != PROTO_TCP && c.next != PROTO_UDP && walk(xdp, f, &c))
		return KIND_OTHER;
	if (c.fragment) {
		if (c.proto == PROTO_ICMPV6 || c.next == PROTO_ICMPV6)
			return KIND_OTHER;
		__builtin_memcpy(p->fragment.src, p->key.remote, 16);
		__builtin_memcpy(p->fragment.dst, p->key.local, 16);
		p->fragment.id = c.id;
		p->fragment.proto = c.proto;
		p->fragment.family = 6;
		if (c.fragment > 1)
			return KIND_LATER;
		p->first = 1;
	}
	p->key.proto = c.next;
	if (c.off + 8 > stop)
		return KIND_OTHER;
	if (c.next == PROTO_ICMPV6)
		return error6(xdp, f, p, c.off, stop);
	return transport(xdp, f, p, c.off, stop);
}

#endif
