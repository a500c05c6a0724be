// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The packet path of the gate: one program for each direction of a gated interface, and one on the tap that leads held
// frames back. See doc.go for what the states mean.
#include "packet.h"

// Marks a frame that user space has released; it goes to the stack whatever the table says.
#define MARK_RELEASED 0x7265686fu

// Destination MACs user space writes into frames it gives back through the tap. Locally administered.
static const __u8 MAC_RELEASED[6] = {0x02, 'r', 'e', 'h', 'o', 1}; // to the stack
static const __u8 MAC_AGAIN[6] = {0x02, 'r', 'e', 'h', 'o', 2};	   // through the table once more
// As source MAC: out of the interface.
static const __u8 MAC_WIRE[6] = {0x02, 'r', 'e', 'h', 'o', 3};

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const void *)a, *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline int to_tap(struct __sk_buff *skb, struct flow *f)
{
	__u32 ifindex = skb->ifindex;
	struct port *tap = bpf_map_lookup_elem(&ports, &ifindex);

	if (!tap || !tap->ifindex) {
		__sync_fetch_and_add(&f->dropped, 1);
		count(no_tap);
		return TCX_DROP;
	}
	return bpf_redirect(tap->ifindex, 0);
}

static __always_inline int hold(struct __sk_buff *skb, struct flow *f)
{
	// The tap has no segmentation offload: the kernel cuts a GSO packet before user space sees it.
	__sync_fetch_and_add(&f->held, skb->gso_segs ? skb->gso_segs : 1);
	count(held);
	return to_tap(skb, f);
}

// expire_hop takes one from TTL or hop limit. Only strays pay it: two hosts that each believe the other has the flow
// must not play ping-pong for seconds.
static __always_inline int expire_hop(struct __sk_buff *skb, struct packet *p)
{
	__u32 off = sizeof(struct ethernet) + (p->family == 4 ? 8 : 7);
	__u8 old[2], new[2];
	__u16 from, to;

	if (bpf_skb_load_bytes(skb, off, old, 2))
		return -1;
	if (old[0] <= 1)
		return -1;
	new[0] = old[0] - 1;
	new[1] = old[1];
	if (bpf_skb_store_bytes(skb, off, new, 1, 0))
		return -1;
	if (p->family == 4) {
		__builtin_memcpy(&from, old, 2);
		__builtin_memcpy(&to, new, 2);
		return bpf_l3_csum_replace(skb, sizeof(struct ethernet) + 10, from, to, 2);
	}
	return 0;
}

static __always_inline int forward(struct __sk_buff *skb, struct packet *p, struct flow *f, __u64 route)
{
	__u32 id = route_node(route);
	struct node *n = bpf_map_lookup_elem(&nodes, &id);
	__u8 mac[12], source[6];

	if (!n || !n->ifindex) {
		count(no_node);
		return TCX_DROP; // the stack would answer RST
	}
	if (bpf_skb_load_bytes(skb, 6, source, 6))
		return TCX_DROP;
	__builtin_memcpy(mac, n->dst, 6);
	__builtin_memcpy(mac + 6, n->src, 6);
	// Never back to where it came from.
	if (same_mac(source, mac) || (route_flags(route) & ROUTE_STRAY && expire_hop(skb, p))) {
		count(loop);
		return TCX_DROP;
	}
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return TCX_DROP;
	__sync_fetch_and_add(&f->forwarded, 1);
	count(forwarded);
	return bpf_redirect(n->ifindex, 0);
}

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

static __always_inline void service_key_of(struct packet *p, struct service_key *k)
{
	if (p->family == 4) {
		k->addr[0] = p->k4.local;
		k->port = p->k4.local_port;
	} else {
		__builtin_memcpy(k->addr, p->k6.local, 16);
		k->port = p->k6.local_port;
	}
	k->proto = PROTO_TCP;
	k->family = p->family;
}

// shut reports whether new connections of a service wait.
static __always_inline int shut(struct service_key *k, __u64 now)
{
	struct door *d = bpf_map_lookup_elem(&doors, k);

	return d && READ_ONCE(d->until) > now;
}

// wait gives a SYN to the tap. Nothing is recorded of it: when it comes back its service's servers may be others.
static __always_inline int wait(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *tap = bpf_map_lookup_elem(&ports, &ifindex);

	if (!tap || !tap->ifindex) {
		count(no_tap);
		return TCX_DROP;
	}
	count(held);
	return bpf_redirect(tap->ifindex, 0);
}

// choose returns the node the service's next connection goes to, or -1 when nobody takes it.
static __always_inline int choose(struct service *s)
{
	struct choice c = {.service = s, .start = __sync_fetch_and_add(&s->next, 1), .node = -1};

	bpf_loop(SERVICE_NODES, try_node, &c, 0);
	return c.node;
}

// handshaking: the route was decided by a SYN and no other packet has been seen since.
static __always_inline int handshaking(__u64 route)
{
	return route & ROUTE_ENTRY && route & ROUTE_FRESH && route_verdict(route) < VERDICT_DEAD;
}

// assign records where a new connection goes and returns its entry, or 0 when it could not be recorded. *route is what
// holds now. Another SYN, or a hold, may race for the insertion; whoever came first is taken over.
static __always_inline struct flow *assign(struct packet *p, struct flow *f, __u16 node, __u64 now, __u64 *route)
{
	struct flow fresh = {};
	__u64 old, seen, new = route_word(1, node, ROUTE_ENTRY | ROUTE_FRESH);

	*route = new;
	if (!f) {
		fresh.route = new;
		fresh.seen = now;
		if (p->family == 4)
			insert(&flows4, &keys4, &p->k4, &fresh);
		else
			insert(&flows6, &keys6, &p->k6, &fresh);
		f = find(p);
		if (!f)
			return 0;
	}
	old = READ_ONCE(f->route);
	if (route_verdict(old) == VERDICT_GONE)
		return 0;
	// Two copies of one SYN on two CPUs: the loser follows the winner.
	if (!handshaking(old)) {
		seen = cas(&f->route, old, new);
		old = seen == old ? new : seen;
	}
	if (old == new)
		count(assigned);
	*route = old;
	return f;
}

SEC("tcx/ingress")
int rehome_in(struct __sk_buff *skb)
{
	struct packet p = {};
	struct flow *f;
	__u64 now, route, word;
	int syn;

	if (skb->mark == MARK_RELEASED) {
		skb->mark = 0;
		bpf_skb_change_type(skb, PACKET_HOST);
		return TCX_NEXT;
	}
	if (skb->pkt_type != PACKET_HOST || !parse(skb, &p, 0))
		return TCX_NEXT;
	f = find(&p);
	syn = (p.flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	if (!f && !syn)
		return TCX_NEXT;
	now = bpf_ktime_get_coarse_ns();
	route = 0;
	if (f) {
		word = READ_ONCE(f->hold);
		if (word & HOLD_IN && hold_live(word, now)) {
			WRITE_ONCE(f->seen, now);
			return hold(skb, f);
		}
		route = READ_ONCE(f->route);
	}
	if (syn && !handshaking(route)) {
		struct service_key key = {};
		struct service *s;
		int node = -1;

		service_key_of(&p, &key);
		s = bpf_map_lookup_elem(&services, &key);
		if (s && shut(&key, now))
			return wait(skb);
		if (s)
			node = choose(s);
		if (node >= 0) {
			f = assign(&p, f, node, now, &route);
			if (!f) {
				// Unrecorded, the connection's next packet would find nobody; the client repeats its SYN.
				count(full);
				return TCX_DROP;
			}
		} else if (f && route & ROUTE_STRAY) {
			// The tuple's next connection must not follow what was left for the last one.
			cas(&f->route, route, 0);
			route = 0;
		}
	}
	if (!f || route_verdict(route) >= VERDICT_DEAD)
		return TCX_NEXT;
	if (READ_ONCE(f->seen) != now)
		WRITE_ONCE(f->seen, now);
	if (route & ROUTE_FRESH && !syn)
		cas(&f->route, route, route & ~(__u64)ROUTE_FRESH);
	if (route_verdict(route) != VERDICT_FORWARD)
		return TCX_NEXT;
	if (route & ROUTE_STRAY && READ_ONCE(f->expires) <= now)
		return TCX_NEXT;
	return forward(skb, &p, f, route);
}

SEC("tcx/egress")
int rehome_out(struct __sk_buff *skb)
{
	struct packet p = {};
	__u32 zero = 0;
	struct state *s = bpf_map_lookup_elem(&state, &zero);
	struct flow *f;
	__u64 now, word;
	int bare;

	if (!s || !READ_ONCE(s->egress_until))
		return TCX_NEXT;
	now = bpf_ktime_get_coarse_ns();
	if (READ_ONCE(s->egress_until) <= now || !parse(skb, &p, 1))
		return TCX_NEXT;
	f = find(&p);
	if (!f)
		return TCX_NEXT;
	word = READ_ONCE(f->route);
	if (word & ROUTE_STRAY && route_verdict(word) == VERDICT_FORWARD && READ_ONCE(f->expires) > now) {
		__sync_fetch_and_add(&f->dropped, 1);
		count(suppressed);
		return TCX_DROP; // the flow is another host's
	}
	word = READ_ONCE(f->hold);
	bare = !p.payload && skb->gso_segs <= 1 && !(p.flags & TCP_RST);
	if (!(word & HOLD_OUT || (word & HOLD_ACK && bare)) || !hold_live(word, now))
		return TCX_NEXT;
	if (!(word & HOLD_OUT))
		return to_tap(skb, f);
	__sync_fetch_and_add(&f->dropped, 1);
	count(suppressed);
	// A refused segment stays unsent in the socket, which is what a snapshot wants; but the refusal also makes TCP
	// reduce its window, which a mere ACK must not cost. Interface 0 does not exist: the redirect frees the packet and
	// reports success to the sender.
	if (bare)
		return bpf_redirect(0, 0);
	return TCX_DROP;
}

// rehome_tap sees what user space writes to a tap.
SEC("tcx/ingress")
int rehome_tap(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	__u8 macs[12], mac[6];
	__u32 mark = 0, wire;

	if (!port || !port->ifindex || bpf_skb_load_bytes(skb, 0, macs, 12))
		return TCX_DROP;
	wire = same_mac(macs + 6, MAC_WIRE);
	if (same_mac(macs, MAC_RELEASED))
		mark = MARK_RELEASED;
	else if (!wire && !same_mac(macs, MAC_AGAIN))
		return TCX_DROP;
	__builtin_memcpy(mac, port->mac, 6);
	if (bpf_skb_store_bytes(skb, wire ? 6 : 0, mac, 6, 0))
		return TCX_DROP;
	skb->mark = mark;
	return bpf_redirect(port->ifindex, wire ? 0 : BPF_F_INGRESS);
}

#include "operation.h"
#include "sweep.h"

char _license[] SEC("license") = "Dual BSD/GPL";
