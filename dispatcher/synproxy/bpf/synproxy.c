// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The dispatcher's side: answers SYNs with cookies, swallows what completes the handshake, and shows user space what clients send
// before it is decided who serves them. See doc.go for the states.
#include "answer.h"

enum state {
	STATE_NONE,
	STATE_WAIT,    // the client has seen the cookie; user space has not decided, or is about to
	STATE_GIVEN,   // to a node: the flow table has it. What still comes here is a late copy
	STATE_LOCAL,   // to this host's stack
	STATE_REFUSED, // user space speaks with the client
};

// struct pending is what is known of a flow whose client has seen its cookie.
struct pending {
	__u32 cookie, isn;
	enum state state;
	__u32 choice;
	__u32 distance; // ms
	__u32 made; // the period of the cookie
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 17);
	__type(key, struct flow);
	__type(value, struct pending);
} flows SEC(".maps");

// struct record goes before the frame in the ring.
struct record {
	struct flow flow;
	__u32 cookie, isn; // the answer's sequence number, and the client's first
	__u32 choice;
	enum state state;
	__u32 length; // of the frame
	__u32 at, header, payload; // of TCP
	__u32 seq, ack;
	__u32 tsval, tsecr;
	__u32 gso_size;
	__u32 distance; // of the client, in ms
	__u32 age; // of the cookie, in periods
	__u8 flags, timestamps, pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct record);
} layout SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} packets SEC(".maps");

struct counters {
	__u64 answered;	 // SYNs
	__u64 unanswered; // SYNs with data, or the kernel said no
	__u64 tiny;	 // SYNs of clients that take only tiny segments, left to the stack
	__u64 completed; // handshakes: bare acknowledgements with a valid cookie
	__u64 shown;	 // packets given to user space
	__u64 repeated;	 // bare acknowledgements of known flows, swallowed
	__u64 invalid;	 // neither a valid cookie nor a known flow, dropped or left to the stack
	__u64 late;	 // copies of packets of flows that were given away, dropped
	__u64 overflow;	 // no room in the ring, dropped
	__u64 large;	 // packets larger than the ring takes, dropped
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

#define count(what) \
	do { \
		__u32 zero_ = 0; \
		struct counters *c_ = bpf_map_lookup_elem(&counts, &zero_); \
		if (c_) \
			c_->what++; \
	} while (0)

enum { SMALL = 512, MEDIUM = 2048, LARGE = 66000 };

static __always_inline void describe(struct record *r, const struct __sk_buff *skb, const struct segment *s, const struct pending *p,
				     __u32 now)
{
	__builtin_memcpy(&r->flow, &s->flow, sizeof(r->flow));
	r->cookie = p->cookie;
	r->isn = p->isn;
	r->choice = p->choice;
	r->state = p->state;
	r->distance = p->distance;
	r->age = now - p->made;
	r->length = skb->len;
	r->at = s->at;
	r->header = s->header;
	r->payload = s->payload;
	r->seq = s->seq;
	r->ack = s->ack;
	r->tsval = s->tsval;
	r->tsecr = s->tsecr;
	r->gso_size = skb->gso_segs > 1 ? skb->gso_size : 0;
	r->flags = s->flags;
	r->timestamps = s->timestamps;
}

// The ring wants sizes that are known beforehand.
#define SHOW(size) \
	do { \
		struct { \
			struct record head; \
			__u8 frame[size]; \
		} *r_ = bpf_ringbuf_reserve(&packets, sizeof(*r_), 0); \
		if (!r_) { \
			count(overflow); \
			return TCX_DROP; \
		} \
		describe(&r_->head, skb, s, p, now); \
		if (length < 1 || length > size || bpf_skb_load_bytes(skb, 0, r_->frame, length)) { \
			bpf_ringbuf_discard(r_, 0); \
			return TCX_DROP; \
		} \
		bpf_ringbuf_submit(r_, 0); \
	} while (0)

// show gives the packet to user space.
static __noinline int show(struct __sk_buff *skb, struct segment *s, struct pending *p)
{
	struct setting *c = setting();
	__u32 length = skb->len, now;

	if (!s || !p || !c)
		return TCX_DROP;
	now = period(c);
	if (length <= SMALL) {
		SHOW(SMALL);
	} else if (length <= MEDIUM) {
		SHOW(MEDIUM);
	} else if (length <= LARGE) {
		SHOW(LARGE);
	} else {
		count(large);
		return TCX_DROP;
	}
	count(shown);
	return TCX_DROP;
}

static __always_inline int syn(struct __sk_buff *skb, struct segment *s)
{
	struct setting *c = setting();

	if (!c || !c->scale)
		return TCX_DROP;
	read_options(skb, s);
	// The kernel makes no connection with smaller segments of a cookie.
	if (s->mss && s->mss < mss_of(0, s->flow.family)) {
		count(tiny);
		return TCX_NEXT;
	}
	if (answer(skb, c, s)) {
		count(unanswered);
		return TCX_DROP;
	}
	count(answered);
	return c->flags & SETTING_SHORTCUT ? bpf_redirect_peer(skb->ifindex, 0) : bpf_redirect(skb->ifindex, 0);
}

// close_to: a follows b by less than what a window can be.
static __always_inline int close_to(__u32 a, __u32 b) { return a - b < 1 << 24; }

static __always_inline int known(struct __sk_buff *skb, struct segment *s, struct pending *p)
{
	if (p->state == STATE_LOCAL)
		return TCX_NEXT;
	if (p->state == STATE_GIVEN) {
		count(late);
		return TCX_DROP;
	}
	if (p->state == STATE_WAIT && !s->payload && !(s->flags & (TCP_FIN | TCP_RST)) && s->ack == p->cookie + 1) {
		count(repeated);
		return TCX_DROP;
	}
	return show(skb, s, p);
}

static __always_inline int stray(struct __sk_buff *skb, struct segment *s, struct setting *c)
{
	struct bpf_sock *found = find_socket(skb, &s->flow);
	int mine = 0;

	if (found) {
		mine = found->state != TCP_LISTEN;
		bpf_sk_release(found);
	}
	if (mine)
		return TCX_NEXT;
	count(invalid);
	return c->flags & SETTING_PASS_STRAYS ? TCX_NEXT : TCX_DROP;
}

// begin: the packet has a valid cookie, which is new.
static __always_inline int begin(struct __sk_buff *skb, struct segment *s, struct pending *p)
{
	p->cookie = s->ack - 1;
	p->isn = s->seq - 1;
	p->state = STATE_WAIT;
	p->distance = distance(s);
	bpf_map_update_elem(&flows, &s->flow, p, BPF_ANY);
	if (s->payload || s->flags & TCP_FIN)
		return show(skb, s, p);
	count(completed);
	return TCX_DROP;
}

SEC("tcx/ingress")
int rehome_synproxy(struct __sk_buff *skb)
{
	struct pending *p, new = {};
	struct segment s = {};
	struct setting *c;
	int near;

	if (!parse(skb, &s) || !serves(&s.flow))
		return TCX_NEXT;
	if ((s.flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN)
		return syn(skb, &s);
	if (s.flags & TCP_SYN || !(s.flags & (TCP_ACK | TCP_RST)))
		return TCX_NEXT; // nonsense, which the stack knows how to ignore
	p = bpf_map_lookup_elem(&flows, &s.flow);
	near = p && close_to(s.seq, p->isn + 1);
	if (s.flags & TCP_RST)
		return near && (p->state == STATE_WAIT || p->state == STATE_REFUSED) ? show(skb, &s, p) : TCX_NEXT;
	read_options(skb, &s);
	if (near && s.ack == p->cookie + 1)
		return known(skb, &s, p);
	c = setting();
	if (!c)
		return TCX_NEXT;
	// The next connection of the same port may be close to the last one.
	if (recall(c, &s, &new.choice, &new.made))
		return begin(skb, &s, &new);
	if (near && close_to(s.ack, p->cookie + 1))
		return known(skb, &s, p);
	return stray(skb, &s, c);
}

char _license[] SEC("license") = "Dual BSD/GPL";
