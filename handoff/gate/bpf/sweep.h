// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The sweep deletes what has been idle, expired or forgotten. It goes through the queues of keys a few at a time, each time started by
// BPF_PROG_RUN: a program is never interrupted, and who waits for its CPU meanwhile may be a connection that is frozen.
#ifndef REHOME_GATE_SWEEP_H
#define REHOME_GATE_SWEEP_H

#include "table.h"

// SWEEP_STEPS entries of each family are looked at in one run: some 30 us.
enum { SWEEP_STEPS = 128 };

enum { LEFT4 = 1, LEFT6 = 2 };

struct sweep {
	__u64 idle;	 // ns without a packet after which an entry's record goes; 0: never
	__u64 handshake; // the same for one whose handshake never ended
	__u64 mark;	 // of this sweep: it stands at the end of each queue as it was at the start
	__u32 begun;	 // the marks are there
	__u32 left;	 // families that are not at their marks yet
	__u32 live;	 // answer: entries kept
	__u32 deleted;	 // answer
	__u32 holds;	 // answer: live holds
	__u32 pad;
};

struct walk {
	struct sweep answer;
	__u64 now;
};

// overdue returns 1 when the entry is to be deleted.
static __always_inline int overdue(struct flow *f, struct walk *w)
{
	__u64 r = READ_ONCE(f->route), hold = READ_ONCE(f->hold), idle;

	if (hold_live(hold, w->now)) {
		w->answer.holds++;
		w->answer.live++;
		return 0;
	}
	// At least one sweep interval passes between the two steps, so that no packet program still has the pointer.
	if (route_verdict(r) == VERDICT_DEAD)
		return cas(&f->route, r, VERDICT_GONE << 8) == r;
	if (r & ROUTE_ENTRY) {
		idle = r & ROUTE_FRESH ? w->answer.handshake : w->answer.idle;
		if (!idle || READ_ONCE(f->seen) + idle > w->now) {
			w->answer.live++;
			return 0;
		}
	} else if (r & ROUTE_STRAY && READ_ONCE(f->expires) > w->now) {
		w->answer.live++;
		return 0;
	}
	cas(&f->route, r, VERDICT_DEAD << 8);
	return 0;
}

static __always_inline void visit(void *flows, void *keys, void *key, struct walk *w)
{
	struct flow *f = bpf_map_lookup_elem(flows, key);

	if (!f)
		return;
	if (overdue(f, w)) {
		bpf_map_delete_elem(flows, key);
		w->answer.deleted++;
		return;
	}
	bpf_map_push_elem(keys, key, BPF_ANY);
}

// A mark is a key of no protocol, with the sweep's number in the place of addresses. That of a sweep whose process has died is dropped.
static __always_inline __u64 mark_of(const __u32 *words)
{
	return (__u64)words[1] << 32 | words[0];
}

static long visit4(__u32 i, struct walk *w)
{
	struct key4 k = {};

	if (!bpf_map_pop_elem(&keys4, &k)) {
		if (k.proto) {
			visit(&flows4, &keys4, &k, w);
			return 0;
		}
		if (mark_of(&k.local) != w->answer.mark)
			return 0;
	}
	w->answer.left &= ~LEFT4;
	return 1;
}

static long visit6(__u32 i, struct walk *w)
{
	struct key6 k = {};

	if (!bpf_map_pop_elem(&keys6, &k)) {
		if (k.proto) {
			visit(&flows6, &keys6, &k, w);
			return 0;
		}
		if (mark_of(k.local) != w->answer.mark)
			return 0;
	}
	w->answer.left &= ~LEFT6;
	return 1;
}

static __always_inline void begin_sweep(struct sweep *s)
{
	struct key4 k4 = {};
	struct key6 k6 = {};

	k4.local = k6.local[0] = s->mark;
	k4.remote = k6.local[1] = s->mark >> 32;
	if (!bpf_map_push_elem(&keys4, &k4, BPF_ANY))
		s->left |= LEFT4;
	if (!bpf_map_push_elem(&keys6, &k6, BPF_ANY))
		s->left |= LEFT6;
	s->begun = 1;
}

// rehome_sweep goes on with a sweep that is over when nothing is left.
SEC("syscall")
int rehome_sweep(struct sweep *s)
{
	struct walk w = {};

	if (!s->begun)
		begin_sweep(s);
	w.now = bpf_ktime_get_ns();
	w.answer = *s;
	if (w.answer.left & LEFT4)
		bpf_loop(SWEEP_STEPS, visit4, &w, 0);
	if (w.answer.left & LEFT6)
		bpf_loop(SWEEP_STEPS, visit6, &w, 0);
	s->left = w.answer.left;
	s->live = w.answer.live;
	s->deleted = w.answer.deleted;
	s->holds = w.answer.holds;
	return 0;
}

static long enlist4(void *map, const void *key, void *value, void *ctx)
{
	bpf_map_push_elem(&keys4, key, BPF_ANY);
	return 0;
}

static long enlist6(void *map, const void *key, void *value, void *ctx)
{
	bpf_map_push_elem(&keys6, key, BPF_ANY);
	return 0;
}

// rehome_enlist fills the queues, once, for tables that a version without them has pinned.
SEC("syscall")
int rehome_enlist(void *ctx)
{
	bpf_for_each_map_elem(&flows4, enlist4, 0, 0);
	bpf_for_each_map_elem(&flows6, enlist6, 0, 0);
	return 0;
}

#endif
