// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Packets that user space sees before their server does: the first datagrams of flows that it chooses the node of, and
// signalling. They leave by a tap and come back by it.
#ifndef REHOME_FORWARD_DIVERT_H
#define REHOME_FORWARD_DIVERT_H

#include "packet.h"
#include "promise.h"

// Marks a frame that user space has given to this host's own stack.
#define MARK_DECIDED 0x72656866u

// A frame at the tap tells about itself where it had its Ethernet addresses, which user space needs no more.
enum reason { REASON_UNDECIDED = 1, REASON_WAITING = 2, REASON_INSPECT = 3, REASON_LATER = 4, REASON_COUNTED = 128 };

struct label {
	__u8 local; // 2: a locally administered address
	__u8 reason; // REASON_COUNTED: who sends the last one on, releases the flow
	__u16 node;
	__u16 number; // diverted
	__u8 local_too;
	__u8 segments; // of the packet the frame was cut from
	__u16 service;
	__u16 port; // place in ports
} __attribute__((packed, aligned(2)));

// reading: somebody looks at the tap.
static __always_inline struct control *reading(__u64 now)
{
	__u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&overall, &zero);

	return c && c->tap && READ_ONCE(c->reading) > now ? c : 0;
}

// number counts one more diverted packet and returns the flow's meta word then. Without META_DIVERT in it, the flow is diverted
// no more.
static __always_inline __u32 number(struct flow *flow)
{
	__u32 m = READ_ONCE(flow->meta), new;

	for (int i = 0; i < 8; i++) {
		if (!(m & META_DIVERT))
			break;
		new = (m & ~(META_COUNT << META_COUNT_SHIFT)) | ((m + (1 << META_COUNT_SHIFT)) & META_COUNT << META_COUNT_SHIFT);
		if (cas32(&flow->meta, m, new) == m)
			return new;
		m = READ_ONCE(flow->meta);
	}
	return m;
}

// to_tap labels the frame and sends it to user space, if its service has room there.
static __always_inline int to_tap(int xdp, struct frame *f, struct control *c, __u32 meta, enum reason reason, __u16 node)
{
	__u32 id = meta_service(meta);
	struct policy *policy = bpf_map_lookup_elem(&policies, &id);
	struct label *l = f->data;
	__u32 segments = f->segments ? f->segments : 1;

	if ((void *)(l + 1) > f->end || !policy)
		return -1;
	if (policy->most && policy->diverted - policy->read >= policy->most) {
		meter(id, crowded);
		count(crowded);
		return -1;
	}
	__sync_fetch_and_add(&policy->diverted, segments);
	l->local = 2;
	l->reason = reason | (meta & META_DIVERT ? REASON_COUNTED : 0);
	l->node = node;
	l->number = meta_count(meta);
	l->local_too = 2;
	l->segments = segments > 255 ? 255 : segments;
	l->service = id;
	l->port = f->ifindex % PORTS;
	meter(id, diverted);
	count(diverted);
	return bpf_redirect(c->tap, 0);
}

// An order is what user space writes in the same place when it gives a frame back.
struct order {
	__u8 magic[4];
	__u16 node;
	__u8 again[4];
	__u16 port;
} __attribute__((packed, aligned(2)));

static __always_inline int is_order(const struct order *o)
{
	return o->magic[0] == 2 && o->magic[1] == 'r' && o->magic[2] == 'f' && o->magic[3] == 'w';
}

#endif
