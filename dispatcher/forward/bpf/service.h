// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Services: who takes their new flows, and how many of them are let in (SARA S13, S14: the probabilities come from user
// space).
#ifndef REHOME_FORWARD_SERVICE_H
#define REHOME_FORWARD_SERVICE_H

#include "table.h"

enum { SERVICE_NODES = 64 };

// A service's number is in its flows' meta words; 0 is no service.
enum { SERVICES = META_SERVICE + 1 };

struct service_key {
	__u32 addr[4]; // an IPv4 address in the first word
	__u16 port;
	__u8 proto, family;
};

enum service_flag {
	SERVICE_DIVERT = 1,  // user space chooses the node of a flow, and sees its SYN, or first datagrams
	SERVICE_INSPECT = 2, // its flows are signalling
};

struct service {
	__u32 count;
	__u32 next; // round robin
	__u16 nodes[SERVICE_NODES];
	__u16 id;
	__u16 flags;
};

// Probabilities are in units of 2^-32. ALWAYS is 1.
#define ALWAYS 0xffffffffu

enum policy_flag {
	POLICY_SEGMENTS = 1, // refuse segments of established TCP flows, too
};

// policy is a cache line of what changes while a service runs. User space writes admission as a whole.
struct policy {
	__u64 admission; // of established flows(32) | of new ones(32)
	__u32 flags;
	__u32 most; // of its frames on their way through user space
	// How many have gone there, and how many of them user space has seen.
	__u32 diverted;
	__u32 read;
	__u32 pad[10];
};

struct meter {
	__u64 assigned;
	__u64 secondary;
	__u64 diverted;
	__u64 crowded;
	__u64 refused_new;
	__u64 refused_established;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERVICES - 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SERVICES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct policy);
} policies SEC(".maps");

// Only services that there are have one, of each processor: an array would take 192 KiB for every processor.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, SERVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct meter);
} meters SEC(".maps");

#define meter(service, field)                                                                                          \
	do {                                                                                                           \
		__u32 id_ = (service);                                                                                 \
		struct meter *m_ = bpf_map_lookup_elem(&meters, &id_);                                                 \
		if (m_)                                                                                                \
			m_->field += 1;                                                                                \
	} while (0)

// A beginning is what becomes of a flow's first packet: node(16), service(12) << 16, and:
enum {
	BEGIN_TAKEN = 1 << 28,	    // somebody takes it; 0: nobody
	BEGIN_REFUSED = 1 << 29,    // admission says no
	BEGIN_DIVERT = 1 << 30,	    // user space is asked
};
#define BEGIN_INSPECT (1ull << 31)
#define BEGIN_PROMISED (1ull << 32)
#define BEGIN_PATTERN_SHIFT 33 // of the promise: see enum pattern

#define begin_node(b) ((__u16)(b))
#define begin_service(b) ((__u32)((b) >> 16) & META_SERVICE)

// Set to 0 before the object is loaded, it leaves the degrading of established flows out of the code: to measure what that
// costs.
const volatile __u32 degrades = 1;

// random is splitmix64 (Steele, Lea, Flood 2014), each processor's own: nobody outside sees its output. bpf_get_prandom_u32 takes
// 15 ns more.
static __always_inline __u32 random(void)
{
	__u32 zero = 0;
	struct counters *c = bpf_map_lookup_elem(&stats, &zero);
	__u64 z;

	if (!c)
		return 0;
	z = c->thrown += 0x9e3779b97f4a7c15ULL;
	z += (__u64)seed[0] << 32 | seed[1];
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z >> 32;
}

// dice says yes with a probability.
static __always_inline int dice(__u32 p) { return p && (p == ALWAYS || random() < p); }

struct choice {
	struct service *service;
	__u32 start;
	__s32 node;
};

static long try_node(__u32 i, struct choice *c)
{
	__u32 n = c->service->count, at, id;
	struct node *node;

	if (!n || n > SERVICE_NODES || i >= n)
		return 1;
	at = (c->start + i) % n;
	asm volatile("" : "+r"(at)); // clang knows at < n, the verifier does not
	if (at >= SERVICE_NODES)
		return 1;
	id = c->service->nodes[at];
	node = bpf_map_lookup_elem(&nodes, &id);
	if (!node || node->flags & NODE_DRAINED || (id && !node->ifindex))
		return 0;
	c->node = id;
	return 1;
}

static __always_inline struct service *service_of(const struct key *k)
{
	struct service_key s = {};

	s.addr[0] = k->local[0];
	s.addr[1] = k->local[1];
	s.addr[2] = k->local[2];
	s.addr[3] = k->local[3];
	s.port = k->ports >> 16;
	s.proto = k->proto;
	s.family = k->family;
	return bpf_map_lookup_elem(&services, &s);
}

// choose says who takes the next flow to the packet's service.
__noinline __u64 choose(const struct key *k)
{
	struct choice c = {.node = -1};
	struct policy *policy;
	__u64 begin;
	__u32 id;

	if (!k)
		return 0;
	c.service = service_of(k);
	if (!c.service)
		return 0;
	id = c.service->id & META_SERVICE;
	begin = id << 16 | BEGIN_TAKEN;
	policy = bpf_map_lookup_elem(&policies, &id);
	if (policy && dice(READ_ONCE(policy->admission))) {
		meter(id, refused_new);
		count(refused_new);
		return BEGIN_REFUSED;
	}
	if (c.service->flags & SERVICE_INSPECT)
		begin |= BEGIN_INSPECT;
	if (c.service->flags & SERVICE_DIVERT)
		return begin | BEGIN_DIVERT;
	c.start = __sync_fetch_and_add(&c.service->next, 1);
	bpf_loop(SERVICE_NODES, try_node, &c, 0);
	return c.node < 0 ? 0 : begin | (__u16)c.node;
}

// degraded: a packet of an established flow is refused.
static __always_inline int degraded(__u32 meta)
{
	__u32 id = meta_service(meta), p;
	struct policy *policy;

	if (!degrades)
		return 0;
	policy = bpf_map_lookup_elem(&policies, &id);
	if (!policy)
		return 0;
	p = READ_ONCE(policy->admission) >> 32;
	if (!p || ((__u8)meta == PROTO_TCP && !(policy->flags & POLICY_SEGMENTS)) || !dice(p))
		return 0;
	meter(id, refused_established);
	count(refused_established);
	return 1;
}

#endif
