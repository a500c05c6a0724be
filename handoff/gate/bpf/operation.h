// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What user space may do to the tables. Every change that races with packets, or with another change, runs here, inside
// the kernel, started by BPF_PROG_RUN over a batch of operations in shared memory.
#ifndef REHOME_GATE_OPERATION_H
#define REHOME_GATE_OPERATION_H

#include "table.h"

enum code {
	OP_QUERY = 1,
	OP_HOLD,
	OP_RELEASE,
	OP_FORWARD,
	OP_COMMIT,
	OP_ADOPT,
	OP_FORGET,
	OP_UNHOLD,
	OP_MUTE, // instead of an egress hold: HOLD_ACK
};

enum { RELEASE_ALWAYS = ~0ULL };

// SILENCE is how long, in ns, a host says nothing on a flow that it has given away.
enum { SILENCE = 1000000000ULL };

struct operation {
	enum code code;
	__s32 result; // 0 or -errno
	__u32 epoch;  // COMMIT: expected; ADOPT: to set
	__u16 node;
	__u8 family; // 4, 6
	__u8 direction;
	__u64 ttl;    // ns from now
	__u64 frames; // RELEASE, and FORWARD with a direction: only if no more than these were held; RELEASE_ALWAYS: in any case. HOLD: 1 if the host serves the flow
	struct key6 key;
	struct flow flow; // after the operation
	__u64 now;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_OPS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct operation);
} operations SEC(".maps");

enum { TRIES = 8 };

static __always_inline struct flow *op_find(struct operation *o)
{
	return o->family == 4 ? bpf_map_lookup_elem(&flows4, &o->key) : bpf_map_lookup_elem(&flows6, &o->key);
}

// op_entry finds the flow or makes it, with value v.
static __always_inline struct flow *op_entry(struct operation *o, struct flow *v)
{
	struct flow *f = op_find(o);
	long err;

	if (f)
		return f;
	err = o->family == 4 ? insert(&flows4, &keys4, &o->key, v) : insert(&flows6, &keys6, &o->key, v);
	f = op_find(o);
	if (!f)
		o->result = err ? err : -EAGAIN;
	return f;
}

// revive makes a tombstone an entry without route again; 0 when the sweep is just deleting it.
static __always_inline int revive(struct flow *f)
{
	__u64 r = READ_ONCE(f->route);

	if (route_verdict(r) == VERDICT_DEAD)
		r = cas(&f->route, r, 0) == r ? 0 : READ_ONCE(f->route);
	return route_verdict(r) < VERDICT_DEAD;
}

// watch_egress makes the egress program look until the deadline.
static __always_inline void watch_egress(__u64 deadline)
{
	__u32 zero = 0;
	struct state *s = bpf_map_lookup_elem(&state, &zero);
	__u64 until;

	if (!s)
		return;
	for (int i = 0; i < TRIES; i++) {
		until = READ_ONCE(s->egress_until);
		if (until >= deadline || cas(&s->egress_until, until, deadline) == until)
			break;
	}
}

// drop_stray is for a flow that this host serves: nothing may lead it away any more.
static __always_inline void drop_stray(struct flow *f)
{
	__u64 r = READ_ONCE(f->route);

	if (r & ROUTE_STRAY)
		cas(&f->route, r, 0);
}

static __always_inline void op_hold(struct operation *o, __u64 now)
{
	struct flow v = {}, *f;
	__u64 deadline = (now + o->ttl) & ~(__u64)HOLD_BITS, old;

	if (o->direction & HOLD_OUT)
		watch_egress(deadline);
	v.seen = now;
	v.hold = deadline | (o->direction & HOLD_BITS);
	f = op_entry(o, &v);
	if (!f)
		return;
	if (!revive(f)) {
		o->result = -EAGAIN;
		return;
	}
	if (o->frames)
		drop_stray(f);
	old = READ_ONCE(f->hold);
	if (!hold_live(old, now)) {
		// A hold that lapsed has nothing to do with this one.
		old = cas(&f->hold, old, 0);
		WRITE_ONCE(f->held, 0);
		WRITE_ONCE(f->dropped, 0);
		old = 0;
	}
	WRITE_ONCE(f->hold, deadline | ((o->direction | old) & HOLD_BITS));
}

static __always_inline void op_release(struct operation *o, struct flow *f)
{
	if (o->frames != RELEASE_ALWAYS && READ_ONCE(f->held) != o->frames) {
		o->result = -EAGAIN;
		return;
	}
	drop_stray(f); // who releases to the own stack serves the flow
	WRITE_ONCE(f->hold, 0);
}

static __always_inline void op_forward(struct operation *o, __u64 now)
{
	struct flow v = {}, *f;
	__u64 r, new = route_word(0, o->node, ROUTE_STRAY);

	v.seen = now;
	v.route = new;
	v.expires = now + o->ttl;
	f = op_entry(o, &v);
	if (!f)
		return;
	o->result = -EAGAIN;
	if (o->direction && o->frames != RELEASE_ALWAYS && READ_ONCE(f->held) != o->frames)
		return;
	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) == VERDICT_GONE)
			return;
		if (r & ROUTE_ENTRY && route_verdict(r) < VERDICT_DEAD) {
			o->result = 0; // the entry's own record knows better
			break;
		}
		WRITE_ONCE(f->expires, now + o->ttl);
		if (cas(&f->route, r, new) == r) {
			o->result = 0;
			break;
		}
	}
	if (!o->result) {
		// A packet that had passed before the hold may find that its socket is gone. The RST must not leave.
		watch_egress(now + SILENCE < now + o->ttl ? now + SILENCE : now + o->ttl);
		WRITE_ONCE(f->hold, 0);
	}
}

static __always_inline void op_mute(struct flow *f, __u64 now)
{
	__u64 h = READ_ONCE(f->hold);

	if (!hold_live(h, now))
		return;
	watch_egress(h & ~(__u64)HOLD_BITS);
	WRITE_ONCE(f->hold, (h & ~(__u64)HOLD_OUT) | HOLD_ACK);
}

static __always_inline void op_commit(struct operation *o, struct flow *f)
{
	__u64 r, new;

	o->result = -EAGAIN;
	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (!(r & ROUTE_ENTRY) || route_verdict(r) >= VERDICT_DEAD) {
			o->result = -ENOENT;
			return;
		}
		// A flow in its handshake cannot be the one that is being moved: its client has used the same port again.
		if (route_epoch(r) != o->epoch || r & ROUTE_FRESH) {
			o->result = -ESTALE;
			return;
		}
		new = route_word(o->epoch + 1, o->node, ROUTE_ENTRY);
		if (cas(&f->route, r, new) == r) {
			o->result = 0;
			return;
		}
	}
}

static __always_inline void op_adopt(struct operation *o, __u64 now)
{
	struct flow v = {}, *f;
	__u64 r, new = route_word(o->epoch, o->node, ROUTE_ENTRY);

	f = op_find(o);
	if (!f) {
		v.seen = now;
		f = op_entry(o, &v);
		if (!f)
			return;
	}
	o->result = -EAGAIN;
	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) == VERDICT_GONE)
			return;
		if (r & ROUTE_ENTRY && route_verdict(r) < VERDICT_DEAD) {
			o->result = -EEXIST;
			return;
		}
		if (cas(&f->route, r, new) == r) {
			WRITE_ONCE(f->seen, now);
			o->result = 0;
			return;
		}
	}
}

static __always_inline void op_forget(struct operation *o, struct flow *f)
{
	__u64 r;

	WRITE_ONCE(f->hold, 0);
	o->result = -EAGAIN;
	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) >= VERDICT_DEAD || cas(&f->route, r, VERDICT_DEAD << 8) == r) {
			o->result = 0;
			return;
		}
	}
}

static long step(__u32 i, __u32 *n)
{
	struct operation *o;
	struct flow *f;
	__u64 now;

	if (i >= *n)
		return 1;
	o = bpf_map_lookup_elem(&operations, &i);
	if (!o)
		return 1;
	now = bpf_ktime_get_ns();
	o->now = now;
	o->result = 0;
	switch (o->code) {
	case OP_HOLD:
		op_hold(o, now);
		break;
	case OP_FORWARD:
		op_forward(o, now);
		break;
	case OP_ADOPT:
		op_adopt(o, now);
		break;
	case OP_QUERY:
	case OP_RELEASE:
	case OP_COMMIT:
	case OP_FORGET:
	case OP_UNHOLD:
	case OP_MUTE:
		break;
	default:
		o->result = -EINVAL;
		return 0;
	}
	f = op_find(o);
	if (!f || route_verdict(READ_ONCE(f->route)) >= VERDICT_DEAD) {
		if (!o->result)
			o->result = -ENOENT;
		return 0;
	}
	if (o->code == OP_RELEASE)
		op_release(o, f);
	else if (o->code == OP_COMMIT)
		op_commit(o, f);
	else if (o->code == OP_FORGET)
		op_forget(o, f);
	else if (o->code == OP_UNHOLD)
		WRITE_ONCE(f->hold, 0);
	else if (o->code == OP_MUTE)
		op_mute(f, now);
	o->flow.route = READ_ONCE(f->route);
	o->flow.hold = READ_ONCE(f->hold);
	o->flow.expires = READ_ONCE(f->expires);
	o->flow.seen = READ_ONCE(f->seen);
	o->flow.held = READ_ONCE(f->held);
	o->flow.dropped = READ_ONCE(f->dropped);
	o->flow.forwarded = READ_ONCE(f->forwarded);
	return 0;
}

struct batch {
	__u32 count;
};

SEC("syscall")
int rehome_op(struct batch *b)
{
	__u32 n = b->count;

	bpf_loop(MAX_OPS, step, &n, 0);
	return 0;
}

#endif
