// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The gate's tables: what they hold and how a word in them may change.
#ifndef REHOME_GATE_TABLE_H
#define REHOME_GATE_TABLE_H

#include "../../../bpf/header.h"

// Keys are as seen by the server: local is the destination of the client's packets.
struct key4 {
	__u32 local, remote;
	__u16 local_port, remote_port;
	__u8 proto, pad[3];
};

struct key6 {
	__u32 local[4], remote[4];
	__u16 local_port, remote_port;
	__u8 proto, pad[3];
};

// route = epoch(32) | node(16) | verdict(8) | flags(8), changed only by compare-and-exchange once the entry is in
// the table. Nobody but the sweep deletes an entry, and only in three steps (any -> DEAD, later DEAD -> GONE, delete),
// because the kernel reuses a deleted element at once: a packet program that still holds the pointer would otherwise
// write into another flow's entry.
enum verdict { VERDICT_PASS = 0, VERDICT_FORWARD = 1, VERDICT_DEAD = 2, VERDICT_GONE = 3 };
enum {
	ROUTE_ENTRY = 1, // the entry's permanent record of the owner; carries an epoch
	ROUTE_FRESH = 2, // the handshake is not over: a SYN is a retransmission
	ROUTE_STRAY = 4, // forwards what arrives late, until `expires`
};

// hold = deadline in ns with the lowest bits replaced by what is held; 0 = none. One word, so that all changes together.
enum {
	HOLD_IN = 1,
	HOLD_OUT = 2,
	HOLD_ACK = 4, // own bare acknowledgements go to the tap: the client does not send on while what it sent is delivered
	HOLD_BITS = 7,
};

struct flow {
	__u64 route;
	__u64 hold;
	__u64 expires;   // of a ROUTE_STRAY
	__u64 seen;      // last packet that was looked up
	__u64 held;      // segments given to the tap since the hold began
	__u64 dropped;   // own packets suppressed at egress, and held ones that had no tap
	__u64 forwarded; // packets
};

enum { NODE_DRAINED = 1 };
enum { MAX_NODES = 4096, SERVICE_NODES = 64, MAX_OPS = 64 };

struct node {
	__u32 ifindex; // 0: unknown node
	__u8 dst[6], src[6];
	__u32 flags;
};

struct service_key {
	__u32 addr[4]; // an IPv4 address in the first word
	__u16 port;
	__u8 proto, family;
};

struct service {
	__u32 count;
	__u32 next; // round robin
	__u16 nodes[SERVICE_NODES];
};

// A door is shut while a service's new connections wait: until then, in ns.
struct door {
	__u64 until;
};

// A port leads from a gated interface to its tap and from a tap to its interface.
struct port {
	__u32 ifindex;
	__u8 mac[6]; // of the interface
	__u8 pad[2];
};

// One word that keeps egress free of look-ups while no egress hold can be live.
struct state {
	__u64 egress_until; // the latest deadline of any egress hold
};

struct counters {
	__u64 held;
	__u64 suppressed;
	__u64 forwarded;
	__u64 assigned;
	__u64 no_tap;
	__u64 no_node;
	__u64 loop;
	__u64 full;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key4);
	__type(value, struct flow);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key6);
	__type(value, struct flow);
} flows6 SEC(".maps");

// The keys of all entries, each once, for the sweep: it takes from the front and puts back what stays. To walk the hash tables
// themselves is one call that nothing on its CPU can interrupt, and takes milliseconds for the empty buckets alone.
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1);
	__uint(value_size, sizeof(struct key4));
} keys4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1);
	__uint(value_size, sizeof(struct key6));
} keys6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NODES);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct door);
} doors SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} stats SEC(".maps");

#define count(field)                                                                                                   \
	do {                                                                                                           \
		__u32 zero_ = 0;                                                                                       \
		struct counters *c_ = bpf_map_lookup_elem(&stats, &zero_);                                             \
		if (c_)                                                                                                \
			c_->field += 1;                                                                                \
	} while (0)

static __always_inline __u64 cas(__u64 *word, __u64 old, __u64 new)
{
	return __sync_val_compare_and_swap(word, old, new);
}

// insert makes an entry unless there is one. A queue has room for more keys than its table for entries.
static __always_inline long insert(void *flows, void *keys, const void *key, const struct flow *v)
{
	long err = bpf_map_update_elem(flows, key, v, BPF_NOEXIST);

	if (!err)
		bpf_map_push_elem(keys, key, BPF_ANY);
	return err;
}

static __always_inline __u64 route_word(__u32 epoch, __u16 node, __u8 flags)
{
	return (__u64)epoch << 32 | (__u64)node << 16 | (node ? VERDICT_FORWARD : VERDICT_PASS) << 8 | flags;
}

#define route_epoch(r) ((__u32)((r) >> 32))
#define route_node(r) ((__u16)((r) >> 16))
#define route_verdict(r) ((__u8)((r) >> 8))
#define route_flags(r) ((__u8)(r))

static __always_inline int hold_live(__u64 hold, __u64 now)
{
	return hold && (hold & ~(__u64)HOLD_BITS) > now;
}

#endif
