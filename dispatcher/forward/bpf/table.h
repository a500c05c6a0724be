// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The forwarder's tables: what they hold, how a flow is found, and how a word in them may change.
//
// A flow table is two BPF arrays, one pair for each IP version. `lines` has one cache line for each 16 slots: 16 guard
// words, each with a 24-bit tag of the flow in that slot. `slots` has the flows. A flow may be in either of two lines,
// which its hash names; a new one goes to the less loaded. A look-up reads one or two lines, all of which together are
// small enough for a last-level cache, and then one cache line of `slots`.
#ifndef REHOME_FORWARD_TABLE_H
#define REHOME_FORWARD_TABLE_H

#include "../../../bpf/header.h"

// Keys are as seen by the server: local is the destination of the client's packets. IPv4 uses the first words only.
struct key {
	__u32 local[4], remote[4];
	__u32 ports; // as in the packet's header: the client's first
	__u8 proto, family;
	__u8 pad[2];
};

// route = epoch(32) | node(16) | verdict(8) | flags(8), changed only by compare-and-exchange once the flow can be found.
// A slot is freed in three steps: any verdict -> DEAD (may be taken back), in a later sweep DEAD -> GONE (nobody looks
// at it any more), and in a later one still the guard word is cleared. The sweeps are more than an RCU grace period
// apart, so no packet program has a pointer into a slot that another flow is put into.
enum verdict { VERDICT_PASS = 0, VERDICT_FORWARD = 1, VERDICT_DEAD = 2, VERDICT_GONE = 3 };
enum {
	ROUTE_ENTRY = 1,   // always set, as in the gate's words
	ROUTE_FRESH = 2,   // the handshake is not over: a SYN is a retransmission
	ROUTE_PENDING = 4, // granted to its node, which may not have it yet: packets are this host's to hold
	ROUTE_CLOSING = 8, // the client has sent FIN or RST
	// These last as long as the flow does.
	ROUTE_INSPECT = 16,   // signalling: what its client says goes through user space
	ROUTE_SECONDARY = 32, // was announced
	ROUTE_KEPT = ROUTE_INSPECT | ROUTE_SECONDARY,
};

struct flow {
	__u64 route;
	__u32 seen;      // last packet, in ticks
	__u32 forwarded; // packets, modulo 2^32
	__u32 ports;
	__u32 meta;
};

// meta = DIVERT(1) | diverted(11) | service(12) | proto(8), changed only by compare-and-exchange once the flow can be
// found. While DIVERT is set, all of the flow's packets go to user space. `diverted` counts them, modulo its size: who has
// sent the last one on may clear DIVERT, and no packet overtakes another. It only needs to be larger than the tap's queue.
#define META_DIVERT (1u << 31)
enum { META_SERVICE_SHIFT = 8, META_SERVICE = 0xfff, META_COUNT_SHIFT = 20, META_COUNT = 0x7ff };

#define meta_service(m) ((m) >> META_SERVICE_SHIFT & META_SERVICE)
#define meta_count(m) ((m) >> META_COUNT_SHIFT & META_COUNT)

// A tick is 2^20 ns, about a millisecond: 32 bits last for 52 days.
enum { TICK_SHIFT = 20 };

// How long a flow is pending at most, in ticks: longer than any handoff takes. If the process that granted it is dead, its node has
// the connection, or answers RST.
enum { PENDING_TICKS = 8 * 1000 };

struct slot4 {
	struct flow flow;
	__u32 local, remote;
};

struct slot6 {
	struct flow flow;
	__u32 local[4], remote[4];
	__u64 pad;
};

enum { LINE = 16 };

// guard = tag(24) | state(8); 0 = free. Slots change state in this order. Only LIVE ones are found by packets. PENDING
// is for two packets that insert one flow at the same time: each publishes, then looks for the other.
enum guard { GUARD_FREE = 0, GUARD_CLAIMED = 1, GUARD_PENDING = 2, GUARD_LIVE = 3, GUARD_RETIRED = 4 };

struct line {
	__u32 guard[LINE];
};

enum { NODE_DRAINED = 1 };
enum { MAX_NODES = 4096 };

struct node {
	__u32 ifindex; // 0: unknown node
	__u8 dst[6], src[6];
	__u32 flags;
};

// A port is an interface the forwarder stands at. Its place is its index modulo PORTS.
enum { PORTS = 1024 };

// PORT_PEER: it is one end of a veth pair, and what leaves by it goes on at the other end at once (package shortcut).
enum { PORT_PEER = 1 };

struct port {
	__u32 ifindex;
	__u8 mac[6];
	__u16 flags;
};

// A fragment's owner, from the first fragment of its packet.
struct fragment_key {
	__u32 src[4], dst[4];
	__u32 id;
	__u8 proto, family;
	__u8 pad[2];
};

struct fragment {
	__u64 seen; // ns
	__u32 node;
	__u32 meta; // of the flow, with FRAGMENT_TAP
};

// FRAGMENT_TAP in the place of a node: the first fragment went to user space, so the others follow there.
#define FRAGMENT_TAP 0x10000

// Linux gives up reassembly after 30 s.
#define FRAGMENT_TIME 30000000000ULL
enum { FRAGMENTS = 4096 };

// A version is of what is pinned. 0: the first, whose entries had no meta but the protocol, and whose services and counters
// were others.
enum { LAYOUT = 2 };

struct setting {
	__u32 seed[10];
	__u32 version;
	__u32 pad;
};

struct counters {
	__u64 forwarded;
	__u64 assigned;
	__u64 no_node;
	__u64 loop;
	__u64 full;
	__u64 errors;
	__u64 fragments;
	__u64 probed;
	__u64 inserted4;
	__u64 inserted6;
	__u64 diverted;
	__u64 unread;
	__u64 crowded;
	__u64 split;
	__u64 secondary;
	__u64 untold;
	__u64 refused_new;
	__u64 refused_established;
	__u64 thrown; // state of the dice: see service.h
};

// Set by user space before the object is loaded: the verifier folds them into the code.
const volatile __u32 seed[10];
const volatile __u32 count4; // lines
const volatile __u32 count6;
const volatile __u64 jiffy;  // ns; 0: unknown
const volatile __u64 jiffy0; // ns on CLOCK_MONOTONIC when jiffies were 0, modulo 2^64

// BPF_F_MMAPABLE is for its side effect: values then begin on a page, so that a line is a cache line.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct line);
} lines4 SEC(".maps"), lines6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct slot4);
} slots4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct slot6);
} slots6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NODES);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct setting);
} settings SEC(".maps");

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

// coarse is CLOCK_MONOTONIC as of the last tick.
static __always_inline __u64 coarse(void) { return jiffy ? bpf_jiffies64() * jiffy + jiffy0 : bpf_ktime_get_coarse_ns(); }

static __always_inline __u32 cas32(__u32 *word, __u32 old, __u32 new)
{
	return __sync_val_compare_and_swap(word, old, new);
}

static __always_inline __u64 cas(__u64 *word, __u64 old, __u64 new)
{
	return __sync_val_compare_and_swap(word, old, new);
}

static __always_inline __u64 route_word(__u32 epoch, __u16 node, __u8 flags)
{
	return (__u64)epoch << 32 | (__u64)node << 16 | (node ? VERDICT_FORWARD : VERDICT_PASS) << 8 | flags;
}

#define route_epoch(r) ((__u32)((r) >> 32))
#define route_node(r) ((__u16)((r) >> 16))
#define route_verdict(r) ((__u8)((r) >> 8))

// place is where a flow may be: two lines, and its tag.
struct place {
	__u32 line[2];
	__u32 tag; // in the guard's upper 24 bits
};

// locate hashes a key. The sum of products with secret addends (NH of UMAC, Black et al. 1999) makes two keys collide
// with a probability of 2^-32 whoever chooses them, so that no client can fill a line on purpose; what follows
// (MurmurHash3's finalizer) only spreads the bits.
static __always_inline void locate(int version, const struct key *k, struct place *at)
{
	__u64 h = (__u64)(k->ports + seed[8]) * (__u32)(k->proto + seed[9]);
	__u32 lines = version == 4 ? count4 : count6;

	h += (__u64)(k->local[0] + seed[0]) * (__u32)(k->remote[0] + seed[1]);
	if (version != 4) {
		h += (__u64)(k->local[1] + seed[2]) * (__u32)(k->remote[1] + seed[3]);
		h += (__u64)(k->local[2] + seed[4]) * (__u32)(k->remote[2] + seed[5]);
		h += (__u64)(k->local[3] + seed[6]) * (__u32)(k->remote[3] + seed[7]);
	}
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 33;
	at->line[0] = (h & 0xffffffff) * lines >> 32;
	at->line[1] = (h >> 32) * lines >> 32;
	// The low bits of each half have no part in the line's number.
	at->tag = (__u32)(h & 0xffff) << 16 | ((__u32)(h >> 32) & 0xff) << 8;
}

// Functions that take a version are always called with a constant, which the compiler folds: the verifier does not
// believe that a flow of a packet of one version is in that version's table.
static __always_inline int same(int version, const struct flow *f, const struct key *k)
{
	if (f->ports != k->ports || (__u8)f->meta != k->proto)
		return 0;
	if (version == 4) {
		const struct slot4 *s = (const void *)f;

		return s->local == k->local[0] && s->remote == k->remote[0];
	}
	const struct slot6 *s = (const void *)f;

	return s->remote[3] == k->remote[3] && s->remote[2] == k->remote[2] && s->remote[1] == k->remote[1] &&
	       s->remote[0] == k->remote[0] && s->local[3] == k->local[3] && s->local[2] == k->local[2] &&
	       s->local[1] == k->local[1] && s->local[0] == k->local[0];
}

static __always_inline struct line *line_of(int version, __u32 line)
{
	return version == 4 ? bpf_map_lookup_elem(&lines4, &line) : bpf_map_lookup_elem(&lines6, &line);
}

static __always_inline struct flow *slot_of(int version, __u32 slot)
{
	return version == 4 ? bpf_map_lookup_elem(&slots4, &slot) : bpf_map_lookup_elem(&slots6, &slot);
}

// search returns 1 + the number of the flow's slot in the line, or 0.
static __always_inline __u32 search(int version, const struct key *k, struct line *l, __u32 line, __u32 want)
{
	for (int i = 0; i < LINE; i++) {
		struct flow *f;

		if (READ_ONCE(l->guard[i]) != want)
			continue;
		f = slot_of(version, line * LINE + i);
		if (f && same(version, f, k) && route_verdict(READ_ONCE(f->route)) != VERDICT_GONE)
			return line * LINE + i + 1;
	}
	return 0;
}

// hits returns the guard words of a line that are as wanted, as bits of one word: the halves of pair i of guard words are
// bits 31 and 63, shifted down by first + i. It has no branch, which the processor could only foresee wrongly, and two
// words at a time. A word that differs from the wanted one in its lowest bit alone may come out as a hit, too (a borrow),
// so that a hit is only where to look.
static __always_inline __u64 hits(const struct line *l, __u32 want, int first)
{
	const __u64 both = (__u64)want << 32 | want, ones = 0x0000000100000001, tops = 0x8000000080000000;
	const __u64 *pairs = (const void *)l->guard;
	__u64 all = 0, v;

#pragma clang loop unroll(full)
	for (int i = 0; i < LINE / 2; i++) {
		v = READ_ONCE(pairs[i]) ^ both;
		all |= ((v - ones) & ~v & tops) >> (first + i);
	}
	return all;
}

// The place of a word's lowest bit by a de Bruijn sequence (Leiserson, Prokop, Randall 1998), as BPF has no instruction for
// it. In hits' words of two lines, bit 63 - i is the second and bit 31 - i the first guard word of pair i.
#define DE_BRUIJN 0x03f79d71b4cb0a89ULL

static const __u8 low_bit[64] = {
	0,  1,	48, 2,	57, 49, 28, 3,	61, 58, 50, 42, 38, 29, 17, 4,	62, 55, 59, 36, 53, 51, 43, 22, 45, 39, 33, 30, 24, 18, 12, 5,
	63, 47, 56, 27, 60, 41, 37, 16, 54, 35, 52, 21, 44, 32, 23, 11, 46, 26, 40, 15, 34, 20, 31, 10, 25, 14, 19, 9,	 13, 8,	 7,  6,
};

// place_of returns the number of a hit in two lines, 0 to 31.
static __always_inline __u32 place_of(__u64 found)
{
	__u32 bit = low_bit[(found & -found) * DE_BRUIJN >> 58];

	return (31 - (bit & 31)) * 2 + (bit >> 5);
}

static __always_inline __u32 look_up(int version, const struct key *k)
{
	struct place p;
	struct line *l, *m;
	struct flow *f;
	__u32 at, want, n, line;
	__u64 found;

	if (!k)
		return 0;
	locate(version, k, &p);
	l = line_of(version, p.line[0]);
	m = line_of(version, p.line[1]);
	if (!l || !m)
		return 0;
	want = p.tag | GUARD_LIVE;
	found = hits(l, want, 0) | hits(m, want, LINE / 2);
	if (!found)
		return 0;
	n = place_of(found);
	// p.line[n >= LINE], without a branch.
	line = p.line[0] ^ ((p.line[0] ^ p.line[1]) & -(n / LINE));
	at = line * LINE + n % LINE;
	f = slot_of(version, at);
	if (f && same(version, f, k) && route_verdict(READ_ONCE(f->route)) != VERDICT_GONE)
		return at + 1;
	// Two flows with one tag, or both lines are the same one.
	at = search(version, k, l, p.line[0], want);
	return at ? at : search(version, k, m, p.line[1], want);
}

// Functions that are not static are verified once, for all arguments, and not again at every call: without that, the
// verifier gives up. They cannot return pointers, hence the numbers.
__noinline __u32 find4(const struct key *k) { return look_up(4, k); }
__noinline __u32 find6(const struct key *k) { return look_up(6, k); }

// entry is the flow in a slot, given as 1 + its number, or 0.
static __always_inline struct flow *entry(const struct key *k, __u32 at)
{
	struct flow *f;

	if (!at)
		return 0;
	if (k->family == 4) {
		f = slot_of(4, at - 1);
		// Otherwise clang makes one call of the two, for whichever map: then the kernel cannot replace it by a few instructions.
		asm volatile("" : "+r"(f));
		return f;
	}
	return slot_of(6, at - 1);
}

// find returns the flow's entry, whose route may be DEAD but is not GONE, or 0.
static __always_inline struct flow *find(const struct key *k) { return entry(k, k->family == 4 ? find4(k) : find6(k)); }

// load_of counts the used slots of a line: without a branch, of which the verifier would follow every combination.
static __always_inline __u64 load_of(struct line *l)
{
	__u64 used = 0;

	for (int i = 0; i < LINE; i++)
		used += ((__u64)READ_ONCE(l->guard[i]) + 0xffffffff) >> 32;
	return used;
}

// claim takes a free slot of a line and returns 1 + its number in the line, or 0.
static __always_inline __u32 claim(struct line *l)
{
	if (!l)
		return 0;
	for (int i = 0; i < LINE; i++)
		if (READ_ONCE(l->guard[i]) == GUARD_FREE &&
		    __sync_val_compare_and_swap(&l->guard[i], GUARD_FREE, GUARD_CLAIMED) == GUARD_FREE)
			return i + 1;
	return 0;
}

__noinline __u32 claim4(__u32 line) { return claim(line_of(4, line)); }
__noinline __u32 claim6(__u32 line) { return claim(line_of(6, line)); }

struct contest {
	const struct key *key;
	struct place place;
	__u32 own;
	__u32 other; // 1 + its number
};

static __always_inline long contest(int version, __u32 i, struct contest *c)
{
	__u32 tag = c->place.tag, line = i < LINE ? c->place.line[0] : c->place.line[1], n = i % LINE, at = line * LINE + n, g;
	struct line *l = line_of(version, line);
	struct flow *f = slot_of(version, at);

	if (!l || !f)
		return 1;
	g = READ_ONCE(l->guard[n]);
	if (at == c->own || (g != (tag | GUARD_LIVE) && g != (tag | GUARD_PENDING)) || !same(version, f, c->key) ||
	    route_verdict(READ_ONCE(f->route)) == VERDICT_GONE)
		return 0;
	if (g == (tag | GUARD_PENDING) && at > c->own)
		g = __sync_val_compare_and_swap(&l->guard[n], g, GUARD_RETIRED);
	if (g == (tag | GUARD_LIVE)) {
		c->other = at + 1;
		return 1;
	}
	if (at < c->own)
		c->other = at + 1;
	return 0;
}

static long contest4(__u32 i, struct contest *c) { return contest(4, i, c); }
static long contest6(__u32 i, struct contest *c) { return contest(6, i, c); }

// rival looks for another slot of the same flow: one that is LIVE, else a PENDING one of a lower number. It returns 1 + its
// number, or 0. A PENDING one of a higher number is retired, unless it has just become LIVE: whoever began it may have looked
// before this one's slot was published.
static __always_inline __u32 rival(int version, const struct key *k, __u32 own)
{
	struct contest c = {.key = k, .own = own};

	if (!k)
		return 0;
	locate(version, k, &c.place);
	bpf_loop(2 * LINE, version == 4 ? contest4 : contest6, &c, 0);
	return c.other;
}

__noinline __u32 rival4(const struct key *k, __u32 own) { return rival(4, k, own); }
__noinline __u32 rival6(const struct key *k, __u32 own) { return rival(6, k, own); }

// add makes an entry for a flow that was not found, and returns 1 + its number. Somebody else may do so at the same time:
// then both get the same entry, and its route is that of whoever was first. 0: both lines are full.
static __always_inline __u32 add(int version, const struct key *k, __u64 route, __u32 meta, __u32 now)
{
	struct place p;
	struct line *l, *m;
	struct flow *f;
	__u32 line, at, other, n;
	__u64 used;

	if (!k)
		return 0;
	locate(version, k, &p);
	l = line_of(version, p.line[0]);
	m = line_of(version, p.line[1]);
	if (!l || !m)
		return 0;
	used = load_of(l);
	// While the first line is more than half empty, a look-up is better served there.
	line = used > LINE / 2 - 2 && used > load_of(m) ? p.line[1] : p.line[0];
	n = version == 4 ? claim4(line) : claim6(line);
	if (!n) {
		line = line == p.line[0] ? p.line[1] : p.line[0];
		n = version == 4 ? claim4(line) : claim6(line);
	}
	l = line_of(version, line);
	if (!n || n > LINE || !l)
		return 0;
	n -= 1;
	at = line * LINE + n;
	f = slot_of(version, at);
	if (!f)
		return 0;
	WRITE_ONCE(f->route, route);
	f->seen = now;
	f->forwarded = 0;
	f->ports = k->ports;
	f->meta = meta | k->proto;
	if (version == 4) {
		struct slot4 *s = (void *)f;

		s->local = k->local[0];
		s->remote = k->remote[0];
	} else {
		struct slot6 *s = (void *)f;

		__builtin_memcpy(s->local, k->local, 16);
		__builtin_memcpy(s->remote, k->remote, 16);
	}
	// An exchange is a full barrier: of two that publish and then look, one at least sees the other.
	__sync_lock_test_and_set(&l->guard[n], p.tag | GUARD_PENDING);
	other = version == 4 ? rival4(k, at) : rival6(k, at);
	if (other || __sync_val_compare_and_swap(&l->guard[n], p.tag | GUARD_PENDING, p.tag | GUARD_LIVE) != (p.tag | GUARD_PENDING)) {
		// Not freed at once: another may just be looking at it.
		WRITE_ONCE(f->route, VERDICT_DEAD << 8);
		__sync_lock_test_and_set(&l->guard[n], GUARD_RETIRED);
		if (other)
			return other;
		return version == 4 ? rival4(k, at) : rival6(k, at);
	}
	if (version == 4)
		count(inserted4);
	else
		count(inserted6);
	return at + 1;
}

__noinline __u32 add4(const struct key *k, __u64 route, __u32 meta, __u32 now) { return add(4, k, route, meta, now); }
__noinline __u32 add6(const struct key *k, __u64 route, __u32 meta, __u32 now) { return add(6, k, route, meta, now); }

static __always_inline struct flow *insert(const struct key *k, __u64 route, __u32 meta, __u32 now)
{
	return entry(k, k->family == 4 ? add4(k, route, meta, now) : add6(k, route, meta, now));
}

#endif
