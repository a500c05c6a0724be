// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The first packet of a flow: who takes it, and its entry in the table.
#ifndef REHOME_FORWARD_COMMENCE_H
#define REHOME_FORWARD_COMMENCE_H

#include "divert.h"

static __always_inline int dead(__u64 route) { return route_verdict(route) >= VERDICT_DEAD; }

// settled: a first packet of this kind does not decide anew.
static __always_inline int settled(__u64 route, __u8 proto)
{
	return !dead(route) && (proto == PROTO_UDP || route & ROUTE_FRESH);
}

// assign records where a new flow goes and returns its entry, or 0 when it could not be recorded. Another packet may
// race for it; whoever came first is followed.
static __always_inline struct flow *assign(const struct key *k, struct flow *f, __u64 begin, __u32 now)
{
	__u32 is, meta = begin_service(begin) << META_SERVICE_SHIFT;
	__u64 old, seen, new;
	__u8 flags = ROUTE_ENTRY;

	if (k->proto == PROTO_TCP)
		flags |= ROUTE_FRESH;
	if (begin & BEGIN_INSPECT)
		flags |= ROUTE_INSPECT;
	if (begin & BEGIN_PROMISED)
		flags |= ROUTE_SECONDARY;
	if (begin & BEGIN_DIVERT)
		meta |= META_DIVERT;
	new = route_word(1, begin_node(begin), flags);
	if (f && route_verdict(READ_ONCE(f->route)) == VERDICT_GONE)
		f = 0;
	if (!f) {
		f = insert(k, new, meta, now);
		if (!f)
			return 0;
	}
	is = READ_ONCE(f->meta);
	old = READ_ONCE(f->route);
	if (route_verdict(old) == VERDICT_GONE)
		return 0;
	if (!settled(old, k->proto)) {
		WRITE_ONCE(f->seen, now);
		WRITE_ONCE(f->forwarded, 0);
		cas32(&f->meta, is, meta | k->proto);
		seen = cas(&f->route, old, new);
		old = seen == old ? new : seen;
	}
	if (dead(old))
		return 0;
	if (old != new)
		return f;
	count(assigned);
	if (begin & BEGIN_PROMISED) {
		count(secondary);
		meter(begin_service(begin), secondary);
		tell(k, begin >> BEGIN_PATTERN_SHIFT);
	} else {
		meter(begin_service(begin), assigned);
	}
	return f;
}

// What commence is told of the packet.
enum { COMMENCE_FRAGMENT = 1, COMMENCE_ANSWER = 2 };

// commence says what begins with a SYN, a SYN-ACK or a datagram whose flow is not settled. It is not static, so that it is verified
// once and not for every state that leads here.
__noinline __u64 commence(const struct key *k, __u64 now, __u32 what)
{
	__u64 begin;

	if (!k)
		return 0;
	begin = promised(k, now >> TICK_SHIFT);
	if (begin || what & COMMENCE_ANSWER)
		return begin;
	begin = choose(k);
	if (!(begin & BEGIN_DIVERT))
		return begin;
	// Fragments of a datagram are put together in user space, those of a segment are not.
	if (what & COMMENCE_FRAGMENT && k->proto != PROTO_UDP) {
		count(split);
		return BEGIN_REFUSED;
	}
	if (!reading(now)) {
		count(unread);
		return BEGIN_REFUSED;
	}
	return begin;
}

#endif
