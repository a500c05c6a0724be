// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The cookie: what the dispatcher answers a SYN with, so that it and every backend can tell from the client's next packet alone that
// the client has seen the answer, and what it had asked for. See layout.go for the bits.
#ifndef REHOME_COOKIE_COOKIE_H
#define REHOME_COOKIE_COOKIE_H

#include "segment.h"

struct secret {
	__u64 low, high;
};

struct setting {
	struct secret secrets[2]; // the first makes cookies, both are accepted
	__u64 offset; // what to add to CLOCK_MONOTONIC for the clock that all hosts share
	__u32 second; // secrets[1] is there
	__u32 scale; // window scale that is announced to clients
	__u32 window; // in the SYN-ACK
	__u16 mss4, mss6; // announced to clients
	__u32 flags;
	__u32 pad;
};

enum { SETTING_ECN = 1, SETTING_PASS_STRAYS = 2, SETTING_SHORTCUT = 4 };

// Two generations, and which of them holds: replacing a value in place would be seen half done.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct setting);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} active SEC(".maps");

static __always_inline struct setting *setting(void)
{
	__u32 zero = 0, at, *which = bpf_map_lookup_elem(&active, &zero);

	if (!which)
		return 0;
	at = READ_ONCE(*which) & 1;
	return bpf_map_lookup_elem(&settings, &at);
}

// PERIOD_SHIFT: a period is 2^35 ns, some 34 s. A cookie is accepted in its own period and the following two, and in the one before: the
// hosts' clocks differ.
enum { PERIOD_SHIFT = 35 };

static __always_inline __u32 period(const struct setting *s) { return (bpf_ktime_get_coarse_ns() + s->offset) >> PERIOD_SHIFT; }

// What of the options is in the low bits of our timestamp. The upper ten bits are the time, in units of 2 ms, for the dispatcher to tell
// how far away the client is.
#define CHOICE_SCALE 15u	 // the client's window scale; NO_SCALE: none
#define CHOICE_SACK (1u << 4)
#define CHOICE_ECN (1u << 5)
#define CHOICE_MSS_SHIFT 6	// 16 bits
#define CHOICE_BITS 22
#define CHOICE_TIMESTAMPS (1u << 31) // not on the wire: the packet has the option

#define ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))

struct sip {
	__u64 a, b, c, d;
};

static __always_inline void sip_round(struct sip *v)
{
	v->a += v->b;
	v->b = ROTATE(v->b, 13) ^ v->a;
	v->a = ROTATE(v->a, 32);
	v->c += v->d;
	v->d = ROTATE(v->d, 16) ^ v->c;
	v->a += v->d;
	v->d = ROTATE(v->d, 21) ^ v->a;
	v->c += v->b;
	v->b = ROTATE(v->b, 17) ^ v->c;
	v->c = ROTATE(v->c, 32);
}

static __always_inline void sip_word(struct sip *v, __u64 m)
{
	v->d ^= m;
	sip_round(v);
	sip_round(v);
	v->a ^= m;
}

// mac is SipHash-2-4 of addresses, ports, and two words.
static __noinline __u64 mac(const struct flow *f, const struct secret *key, __u64 first, __u64 second)
{
	struct sip v;

	if (!f || !key)
		return 0;
	v.a = key->low ^ 0x736f6d6570736575ull;
	v.b = key->high ^ 0x646f72616e646f6dull;
	v.c = key->low ^ 0x6c7967656e657261ull;
	v.d = key->high ^ 0x7465646279746573ull;
	sip_word(&v, f->remote[0] | (__u64)f->local[0] << 32);
	if (f->family == 6) {
		sip_word(&v, f->remote[1] | (__u64)f->local[1] << 32);
		sip_word(&v, f->remote[2] | (__u64)f->local[2] << 32);
		sip_word(&v, f->remote[3] | (__u64)f->local[3] << 32);
	}
	sip_word(&v, first);
	sip_word(&v, second);
	sip_word(&v, (f->family == 6 ? 48ull : 24ull) << 56);
	v.c ^= 0xff;
	sip_round(&v);
	sip_round(&v);
	sip_round(&v);
	sip_round(&v);
	return v.a ^ v.b ^ v.c ^ v.d;
}

// struct sealed is what the cookie vouches for, beside the flow.
struct sealed {
	__u32 isn;	 // the client's
	__u32 period;
	__u32 index;	 // of the MSS
	__u32 timestamp; // ours, if there are timestamps
	__u32 timestamps;
};

static __always_inline __u32 cookie_of(const struct flow *f, const struct secret *key, const struct sealed *v)
{
	__u64 first = f->remote_port | (__u32)f->local_port << 16 | (__u64)v->isn << 32;
	__u64 second = v->period | v->index << 30 | v->timestamps << 29 | (__u64)v->timestamp << 32;

	return (__u32)mac(f, key, first, second) << 4 | (v->period & 3) << 2 | v->index;
}

static __always_inline __u32 milliseconds(void) { return bpf_ktime_get_coarse_ns() >> 20; } // nearly

static __always_inline __u32 mss_index(__u16 mss, __u32 family)
{
	if (family == 6)
		return mss >= 8940 ? 3 : mss >= 1440 ? 2 : mss >= 1360 ? 1 : 0;
	return mss >= 1460 ? 3 : mss >= 1440 ? 2 : mss >= 1300 ? 1 : 0;
}

static __always_inline __u16 mss_of(__u32 index, __u32 family)
{
	if (family == 6)
		return index == 3 ? 8940 : index == 2 ? 1440 : index == 1 ? 1360 : 1220;
	return index == 3 ? 1460 : index == 2 ? 1440 : index == 1 ? 1300 : 536;
}

// recall returns 1 if the segment, whose options have been read, is the first one of a client that has seen our cookie, the choice
// of options, and the period that the cookie was made in.
static __always_inline int recall(const struct setting *c, const struct segment *s, __u32 *choice, __u32 *made)
{
	__u32 cookie = s->ack - 1, now = period(c), when;
	struct sealed v = {
		.isn = s->seq - 1, .index = cookie & 3, .timestamps = s->timestamps, .timestamp = s->timestamps ? s->tsecr : 0,
	};

	// 0: now, 1: the sender's clock is ahead, 3 and 2: the last two.
	when = (cookie >> 2) - now & 3;
	v.period = when == 1 ? now + 1 : now - (4 - when & 3);
	*made = v.period;
	*choice = v.index << 24 | NO_SCALE;
	if (s->timestamps)
		*choice = v.index << 24 | CHOICE_TIMESTAMPS | (s->tsecr & ((1u << CHOICE_BITS) - 1));
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (i && !c->second)
			return 0;
		if (cookie_of(&s->flow, &c->secrets[i], &v) == cookie)
			return 1;
	}
	return 0;
}

// distance returns how long ago the dispatcher, on which this runs, sent its answer, in milliseconds, modulo 2 s.
static __always_inline __u32 distance(const struct segment *s)
{
	return s->timestamps ? ((milliseconds() >> 1) - (s->tsecr >> CHOICE_BITS) & 1023) << 1 : 0;
}

// chosen_mss returns the client's MSS.
static __always_inline __u16 chosen_mss(__u32 choice, __u32 family)
{
	__u16 mss = choice >> CHOICE_MSS_SHIFT;

	return choice & CHOICE_TIMESTAMPS ? mss : mss_of(choice >> 24 & 3, family);
}

#endif
