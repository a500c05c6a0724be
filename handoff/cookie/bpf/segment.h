// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// From a frame to a TCP segment. Everything that is not a whole TCP segment for this host over untagged IPv4 or IPv6 without options or
// extension headers is "not ours" and goes on untouched.
#ifndef REHOME_COOKIE_SEGMENT_H
#define REHOME_COOKIE_SEGMENT_H

#include "../../../bpf/header.h"
#include "../../../bpf/socket.h"

// struct flow is the key of all maps. For IPv6 its head is the tuple that bpf_skc_lookup_tcp wants.
struct flow {
	__u32 remote[4], local[4]; // IPv4: the first word, zeroes behind
	__u16 remote_port, local_port; // network order, as the addresses
	__u32 family; // 4, 6
};

struct segment {
	struct flow flow;
	__u32 at;      // offset of the TCP header
	__u32 header;  // its length
	__u32 payload; // bytes of data
	__u32 seq, ack;
	__u32 tsval, tsecr; // when timestamps
	__u16 checksum; // as it stands in the packet
	__u16 mss; // of a SYN, 0: none
	__u16 urgent; // of a first packet that the dispatcher sent on: how far the client is, in ms
	__u8 flags;
	__u8 timestamps; // the option is there
	__u8 scale; // of a SYN: the client's window scale, 15: none
	__u8 sack; // of a SYN
};

enum { NO_SCALE = 15 };

// struct options walks the options of a TCP header.
struct options {
	__u8 bytes[44]; // 40, and what reading behind the end would touch
	struct segment *segment;
	__u32 at, end;
};

static __always_inline __u32 word_at(const __u8 *b) { return (__u32)b[0] << 24 | (__u32)b[1] << 16 | (__u32)b[2] << 8 | b[3]; }

static long option(__u32 i, struct options *o)
{
	struct segment *s = o->segment;
	__u32 at = o->at;
	__u8 type, length;

	if (at >= o->end || at > 39)
		return 1;
	type = o->bytes[at];
	if (type == 0)
		return 1;
	if (type == 1) {
		o->at = at + 1;
		return 0;
	}
	length = o->bytes[at + 1];
	if (length < 2 || at + length > o->end)
		return 1;
	o->at = at + length;
	if (type == 2 && length == 4)
		s->mss = (__u16)o->bytes[at + 2] << 8 | o->bytes[at + 3];
	if (type == 3 && length == 3)
		s->scale = o->bytes[at + 2] > 14 ? 14 : o->bytes[at + 2];
	if (type == 4 && length == 2)
		s->sack = 1;
	if (type == 8 && length == 10 && at <= 30) {
		s->tsval = word_at(o->bytes + at + 2);
		s->tsecr = word_at(o->bytes + at + 6);
		s->timestamps = 1;
	}
	return 0;
}

// read_options fills in what the options say.
static __noinline int read_options(struct __sk_buff *skb, struct segment *s)
{
	struct options o = {.segment = s};
	__u32 n;

	if (!s)
		return 0;
	n = s->header - 20;
	o.end = n;
	s->scale = NO_SCALE;
	if (n < 1 || n > 40)
		return 0;
	if (bpf_skb_load_bytes(skb, s->at + 20, o.bytes, n))
		return 0;
	bpf_loop(40, option, &o, 0);
	return 0;
}

// parse returns 0 when the frame is none of ours. s must be zeroed. Options are not read.
static __always_inline int parse(struct __sk_buff *skb, struct segment *s)
{
	__u32 want, length;
	struct tcp *t;
	void *data, *end;

	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return 0;
	if (skb->protocol == bpf_htons(ETH_IPV4))
		s->at = sizeof(struct ethernet) + sizeof(struct ipv4);
	else if (skb->protocol == bpf_htons(ETH_IPV6))
		s->at = sizeof(struct ethernet) + sizeof(struct ipv6);
	else
		return 0;
	want = s->at + sizeof(struct tcp);
	if (skb->len < want)
		return 0;
	// Drivers may leave everything after the Ethernet header in fragments.
	if (skb->data + want > skb->data_end && bpf_skb_pull_data(skb, want))
		return 0;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (skb->protocol == bpf_htons(ETH_IPV4)) {
		struct ipv4 *ip = data + sizeof(struct ethernet);

		t = (void *)(ip + 1);
		if ((void *)(t + 1) > end || ip->version_ihl != 0x45 || ip->protocol != PROTO_TCP || ip->fragment & bpf_htons(0x3fff))
			return 0;
		length = bpf_ntohs(ip->length);
		if (!length && skb->gso_segs)
			length = skb->len - sizeof(struct ethernet);
		length -= sizeof(*ip);
		s->flow.remote[0] = ip->src;
		s->flow.local[0] = ip->dst;
		s->flow.family = 4;
	} else {
		struct ipv6 *ip = data + sizeof(struct ethernet);

		t = (void *)(ip + 1);
		if ((void *)(t + 1) > end || ip->version_class >> 4 != 6 || ip->next != PROTO_TCP)
			return 0;
		length = bpf_ntohs(ip->length);
		if (!length && skb->gso_segs)
			length = skb->len - s->at;
		__builtin_memcpy(s->flow.remote, ip->src, 16);
		__builtin_memcpy(s->flow.local, ip->dst, 16);
		s->flow.family = 6;
	}
	s->header = (t->offset >> 4) * 4;
	if (s->header < 20 || length < s->header || length > skb->len - s->at)
		return 0;
	s->payload = length - s->header;
	s->flow.remote_port = t->src;
	s->flow.local_port = t->dst;
	s->seq = bpf_ntohl(t->seq);
	s->ack = bpf_ntohl(t->ack);
	s->flags = t->flags;
	s->checksum = t->checksum;
	s->urgent = bpf_ntohs(t->urgent);
	return 1;
}

static __always_inline struct bpf_sock *find_socket(struct __sk_buff *skb, struct flow *f)
{
	__u32 tuple[3];

	if (f->family == 6)
		return bpf_skc_lookup_tcp(skb, f, 36, BPF_F_CURRENT_NETNS, 0);
	tuple[0] = f->remote[0];
	tuple[1] = f->local[0];
	tuple[2] = (__u32)f->local_port << 16 | f->remote_port;
	return bpf_skc_lookup_tcp(skb, tuple, sizeof(tuple), BPF_F_CURRENT_NETNS, 0);
}

// struct service is an address and port at which connections begin with a cookie.
struct service {
	__u32 addr[4];
	__u16 port; // network order
	__u16 family; // 4, 6
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct service);
	__type(value, __u32);
} services SEC(".maps");

static __always_inline int serves(const struct flow *f)
{
	struct service s = {.port = f->local_port, .family = f->family};

	__builtin_memcpy(s.addr, f->local, 16);
	return bpf_map_lookup_elem(&services, &s) != 0;
}

#endif
