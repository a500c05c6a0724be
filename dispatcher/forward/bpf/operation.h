// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What user space may do to the flow tables. Every change that races with packets, or with another change, runs here,
// inside the kernel, started by BPF_PROG_RUN over a batch of operations in shared memory.
#ifndef REHOME_FORWARD_OPERATION_H
#define REHOME_FORWARD_OPERATION_H

#include "promise.h"

enum code {
	OP_QUERY = 1,
	OP_COMMIT,
	OP_ADOPT,
	OP_FORGET,
	OP_ASSIGN,
	OP_INSPECT,
	OP_RELEASE,
	OP_GRANT,
	OP_SETTLE,
};

enum { MAX_OPS = 64, TRIES = 8 };

struct operation {
	enum code code;
	__s32 result; // 0 or -errno
	__u32 epoch;  // COMMIT, GRANT, SETTLE: expected; ADOPT: to set; ASSIGN, INSPECT: flags to set; RELEASE: number of the last packet
	__u32 node;
	struct key key;
	// Answers, after the operation.
	__u64 route;
	__u32 idle; // ticks
	__u32 forwarded;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_OPS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct operation);
} operations SEC(".maps");

static __always_inline __s32 commit(struct operation *o, struct flow *f, __u64 flags, __u32 now)
{
	__u64 r, new;

	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) >= VERDICT_DEAD)
			return -ENOENT;
		// A flow in its handshake cannot be the one that is being moved: its client has used the same port again.
		if (route_epoch(r) != o->epoch || r & ROUTE_FRESH)
			return -ESTALE;
		new = route_word(o->epoch + 1, o->node, ROUTE_ENTRY | flags | (r & (ROUTE_CLOSING | ROUTE_KEPT)));
		// Pending is counted from here: it must not be found to be over before it has begun.
		if (flags)
			WRITE_ONCE(f->seen, now);
		if (cas(&f->route, r, new) == r)
			return 0;
	}
	return -EAGAIN;
}

// settle ends what GRANT has begun.
static __always_inline __s32 settle(struct operation *o, struct flow *f)
{
	__u64 r;

	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) >= VERDICT_DEAD)
			return -ENOENT;
		if (route_epoch(r) != o->epoch || route_node(r) != o->node)
			return -ESTALE;
		if (!(r & ROUTE_PENDING) || cas(&f->route, r, r & ~(__u64)ROUTE_PENDING) == r)
			return 0;
	}
	return -EAGAIN;
}

// undecided: nobody has said yet where the flow's packets go.
static __always_inline int undecided(__u64 route, __u32 meta)
{
	return meta & META_DIVERT && route_epoch(route) == 1 && !route_node(route);
}

// assign_to decides.
static __always_inline __s32 assign_to(struct operation *o, struct flow *f)
{
	__u64 r, new;

	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) >= VERDICT_DEAD)
			return -ENOENT;
		if (!undecided(r, READ_ONCE(f->meta)))
			return -EEXIST;
		// A SYN that comes again is still the same one.
		new = route_word(2, o->node, ROUTE_ENTRY | (r & (ROUTE_KEPT | ROUTE_FRESH)) | (o->epoch & ROUTE_INSPECT));
		if (cas(&f->route, r, new) == r)
			return 0;
	}
	return -EAGAIN;
}

static __always_inline __s32 inspect(struct operation *o, struct flow *f)
{
	__u64 r, new;

	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) >= VERDICT_DEAD)
			return -ENOENT;
		new = (r & ~(__u64)ROUTE_INSPECT) | (o->epoch & ROUTE_INSPECT);
		if (cas(&f->route, r, new) == r)
			return 0;
	}
	return -EAGAIN;
}

// release ends the diversion if no packet was diverted after the one that was just sent on.
static __always_inline __s32 release(struct operation *o, struct flow *f)
{
	__u32 m;

	for (int i = 0; i < TRIES; i++) {
		m = READ_ONCE(f->meta);
		if (!(m & META_DIVERT))
			return 0;
		if (meta_count(m) != o->epoch || undecided(READ_ONCE(f->route), m))
			return -EAGAIN;
		if (cas32(&f->meta, m, m & ~META_DIVERT) == m)
			return 0;
	}
	return -EAGAIN;
}

static __always_inline __s32 adopt(struct operation *o, struct flow *f, __u64 new, __u32 meta, __u32 now)
{
	__u32 was = READ_ONCE(f->meta);
	__u64 r;

	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) == VERDICT_GONE)
			return -EAGAIN;
		if (route_verdict(r) < VERDICT_DEAD)
			return -EEXIST;
		WRITE_ONCE(f->seen, now);
		cas32(&f->meta, was, meta);
		if (cas(&f->route, r, new) == r)
			return 0;
	}
	return -EAGAIN;
}

static __always_inline __s32 forget(struct flow *f)
{
	__u64 r;

	for (int i = 0; i < TRIES; i++) {
		r = READ_ONCE(f->route);
		if (route_verdict(r) >= VERDICT_DEAD || cas(&f->route, r, VERDICT_DEAD << 8) == r)
			return 0;
	}
	return -EAGAIN;
}

static long step(__u32 i, __u32 *n)
{
	struct service *service;
	struct operation *o;
	struct flow *f;
	struct key k;
	__u32 now, meta;
	__u64 r;

	if (i >= *n)
		return 1;
	o = bpf_map_lookup_elem(&operations, &i);
	if (!o)
		return 1;
	k = o->key;
	now = bpf_ktime_get_ns() >> TICK_SHIFT;
	o->result = 0;
	f = find(&k);
	if (o->code == OP_ADOPT) {
		r = route_word(o->epoch, o->node, ROUTE_ENTRY);
		service = service_of(&k);
		meta = service ? (service->id & META_SERVICE) << META_SERVICE_SHIFT : 0;
		if (f) {
			o->result = adopt(o, f, r, meta | k.proto, now);
		} else {
			f = insert(&k, r, meta, now);
			if (!f)
				o->result = -E2BIG;
			else if (READ_ONCE(f->route) != r)
				o->result = -EEXIST;
		}
	} else if (!f) {
		o->result = -ENOENT;
	} else if (o->code == OP_COMMIT) {
		o->result = commit(o, f, 0, now);
	} else if (o->code == OP_GRANT) {
		o->result = commit(o, f, ROUTE_PENDING, now);
	} else if (o->code == OP_SETTLE) {
		o->result = settle(o, f);
	} else if (o->code == OP_ASSIGN) {
		o->result = assign_to(o, f);
	} else if (o->code == OP_INSPECT) {
		o->result = inspect(o, f);
	} else if (o->code == OP_RELEASE) {
		o->result = release(o, f);
	} else if (o->code == OP_FORGET) {
		o->result = forget(f);
	} else if (o->code != OP_QUERY) {
		o->result = -EINVAL;
	}
	if (!f)
		return 0;
	r = READ_ONCE(f->route);
	if (o->code == OP_QUERY && route_verdict(r) >= VERDICT_DEAD)
		o->result = -ENOENT;
	o->route = r;
	o->idle = now - READ_ONCE(f->seen);
	o->forwarded = READ_ONCE(f->forwarded);
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

// sweep looks through `lines` lines from `line` on.
struct sweep {
	__u32 family; // 4, 6
	__u32 line, lines;
	// Ticks without a packet after which a flow goes.
	__u32 idle;
	__u32 closing;	 // the client has sent FIN or RST
	__u32 handshake; // a handshake that never ended
	__u32 datagram;	 // UDP
	__u32 settle;	 // whether what is pending is no longer
	// Answers.
	__u32 live;
	__u32 fresh; // of those
	__u32 dying; // on their way out
	__u32 freed;
};

struct walker {
	struct sweep s;
	__u32 now;
};

static __always_inline void visit(struct walker *w, __u32 *guard, struct flow *f)
{
	__u64 r = READ_ONCE(f->route);
	__u32 limit;

	if (w->s.settle) {
		if (r & ROUTE_PENDING && route_verdict(r) < VERDICT_DEAD)
			cas(&f->route, r, r & ~(__u64)ROUTE_PENDING);
		return;
	}
	if (route_verdict(r) == VERDICT_GONE) {
		__sync_lock_test_and_set(guard, GUARD_FREE);
		w->s.freed++;
		return;
	}
	if (route_verdict(r) == VERDICT_DEAD) {
		cas(&f->route, r, VERDICT_GONE << 8);
		w->s.dying++;
		return;
	}
	limit = (__u8)f->meta == PROTO_UDP ? w->s.datagram : w->s.idle;
	if (r & ROUTE_FRESH || undecided(r, f->meta))
		limit = w->s.handshake;
	else if (r & ROUTE_CLOSING)
		limit = w->s.closing;
	// A packet may have come since the walk began: then the difference is negative.
	if ((__s32)(w->now - READ_ONCE(f->seen)) < (__s32)limit) {
		w->s.live++;
		w->s.fresh += r & ROUTE_FRESH ? 1 : 0;
		return;
	}
	cas(&f->route, r, VERDICT_DEAD << 8);
	w->s.dying++;
}

static __always_inline long visit_line(int version, __u32 i, struct walker *w)
{
	__u32 number = w->s.line + i;
	struct line *l = line_of(version, number);

	if (!l)
		return 1;
	for (int n = 0; n < LINE; n++) {
		__u32 g = READ_ONCE(l->guard[n]) & 0xff;
		struct flow *f;

		if (g != GUARD_LIVE && g != GUARD_RETIRED)
			continue;
		f = slot_of(version, number * LINE + n);
		if (f)
			visit(w, &l->guard[n], f);
	}
	return 0;
}

static long visit4(__u32 i, struct walker *w) { return visit_line(4, i, w); }
static long visit6(__u32 i, struct walker *w) { return visit_line(6, i, w); }

SEC("syscall")
int rehome_sweep(struct sweep *s)
{
	struct walker w = {.s = *s};

	w.now = bpf_ktime_get_ns() >> TICK_SHIFT;
	if (s->family == 4)
		bpf_loop(s->lines, visit4, &w, 0);
	else
		bpf_loop(s->lines, visit6, &w, 0);
	s->live = w.s.live;
	s->fresh = w.s.fresh;
	s->dying = w.s.dying;
	s->freed = w.s.freed;
	return 0;
}

#endif
