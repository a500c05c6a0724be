// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Promises: flows that signalling has announced, which the first packet makes a flow of its own (SARA S7, S9).
#ifndef REHOME_FORWARD_PROMISE_H
#define REHOME_FORWARD_PROMISE_H

#include "service.h"

// A promise's key is a flow's, in which one of the two ports may be left open.
enum pattern { PATTERN_EXACT = 0, PATTERN_CLIENT = 1, PATTERN_SERVER = 2, PATTERNS = 3 };

enum { PROMISE_INSPECT = 1 };

struct promise {
	__u64 tag; // user space's
	__u32 until; // tick
	__u32 hits;
	__u16 node, service, flags, pad;
};

// event tells user space of the first packet of an announced flow.
struct event {
	struct key key;
	__u32 pattern; // ports of the promise
	__u32 node;
	__u64 tag;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct promise);
} promises SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

// control is what concerns all services.
struct control {
	__u64 reading; // ns: until when somebody reads the tap
	__u32 tap;     // its interface
	__u32 patterns; // bits: kinds of promises there have been
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct control);
} overall SEC(".maps");

// The header has the client's port first, and the object is little-endian.
static __always_inline __u32 open_port(__u32 ports, int pattern)
{
	return pattern == PATTERN_CLIENT ? ports & 0xffff0000 : pattern == PATTERN_SERVER ? ports & 0xffff : ports;
}

// promised finds the promise that a first packet keeps, and returns its beginning, or 0. An exact one goes first.
__noinline __u64 promised(const struct key *k, __u32 now)
{
	__u32 zero = 0, patterns, ports;
	struct control *c = bpf_map_lookup_elem(&overall, &zero);
	struct promise *p;
	struct key key;
	__u64 begin;

	if (!k || !c)
		return 0;
	patterns = READ_ONCE(c->patterns);
	if (!patterns)
		return 0;
	key = *k;
	ports = key.ports;
	for (int i = 0; i < PATTERNS; i++) {
		if (!(patterns & 1 << i))
			continue;
		key.ports = open_port(ports, i);
		p = bpf_map_lookup_elem(&promises, &key);
		if (!p || (__s32)(p->until - now) < 0)
			continue;
		__sync_fetch_and_add(&p->hits, 1);
		begin = p->node | (p->service & META_SERVICE) << 16 | BEGIN_TAKEN | BEGIN_PROMISED | (__u64)i << BEGIN_PATTERN_SHIFT;
		if (p->flags & PROMISE_INSPECT)
			begin |= BEGIN_INSPECT;
		return begin;
	}
	return 0;
}

// tell reports that a promise was kept. When nobody reads, the flow's entry still says so.
__noinline int tell(const struct key *k, __u32 pattern)
{
	struct event e = {};
	struct promise *p;
	struct key key;

	if (!k)
		return 0;
	key = *k;
	key.ports = open_port(k->ports, pattern);
	p = bpf_map_lookup_elem(&promises, &key);
	if (!p)
		return 0;
	e.key = *k;
	e.pattern = key.ports;
	e.node = p->node;
	e.tag = p->tag;
	if (bpf_ringbuf_output(&events, &e, sizeof(e), 0))
		count(untold);
	return 0;
}

#endif
