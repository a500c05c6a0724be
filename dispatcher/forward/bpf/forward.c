// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The packet path of the forwarder, once as a tcx program and once as an XDP program. See doc.go for what the states mean.
#include "commence.h"

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u32 *x = (const void *)a, *y = (const void *)b;
	const __u16 *v = (const void *)(a + 4), *w = (const void *)(b + 4);

	return *x == *y && *v == *w;
}

static __always_inline int pass(int xdp) { return xdp ? XDP_PASS : TCX_NEXT; }
static __always_inline int drop(int xdp) { return xdp ? XDP_DROP : TCX_DROP; }

// leave sends the frame out of an interface.
static __always_inline int leave(int xdp, __u32 ifindex)
{
	__u32 at = ifindex % PORTS;
	struct port *port;

	if (!xdp) {
		port = bpf_map_lookup_elem(&ports, &at);
		if (port && port->ifindex == ifindex && READ_ONCE(port->flags) & PORT_PEER)
			return bpf_redirect_peer(ifindex, 0);
	}
	return bpf_redirect(ifindex, 0);
}

// send gives the frame to a node, unchanged but for its addresses.
static __always_inline int send(int xdp, struct frame *f, __u32 id)
{
	struct node *n = bpf_map_lookup_elem(&nodes, &id);
	struct ethernet *e = f->data;
	__u32 *to = f->data;
	const __u32 *mac;

	if (!n || !n->ifindex) {
		count(no_node);
		return drop(xdp); // the stack would answer RST
	}
	if ((void *)(e + 1) > f->end)
		return drop(xdp);
	// Never back to where it came from.
	if (same_mac(e->src, n->dst)) {
		count(loop);
		return drop(xdp);
	}
	// Words, where the compiler would copy bytes.
	mac = (const void *)n->dst;
	WRITE_ONCE(to[0], mac[0]);
	WRITE_ONCE(to[1], mac[1]);
	WRITE_ONCE(to[2], mac[2]);
	count(forwarded);
	return leave(xdp, n->ifindex);
}

static __always_inline int later(int xdp, struct frame *f, struct packet *p)
{
	struct fragment *known = bpf_map_lookup_elem(&fragments, &p->fragment);
	__u64 now = coarse();
	struct control *c;
	int act;

	if (!known || known->seen + FRAGMENT_TIME < now)
		return pass(xdp);
	if (known->node != FRAGMENT_TAP) {
		count(fragments);
		return send(xdp, f, known->node);
	}
	c = reading(now);
	if (!c) {
		count(unread); // as the first one was, in the tap
		return drop(xdp);
	}
	act = to_tap(xdp, f, c, known->meta & ~META_DIVERT, REASON_LATER, 0);
	return act < 0 ? drop(xdp) : act;
}

// remember tells the fragments that follow where the first one went.
static __always_inline void remember(struct packet *p, __u32 node, __u32 meta, __u64 now)
{
	struct fragment v = {.seen = now, .node = node, .meta = meta};

	if (!node) {
		// Another packet's number may have come round.
		bpf_map_delete_elem(&fragments, &p->fragment);
		return;
	}
	if (node != FRAGMENT_TAP)
		count(fragments);
	bpf_map_update_elem(&fragments, &p->fragment, &v, BPF_ANY);
}

// divert returns what becomes of a packet that user space should see, or -1 if it takes its flow's way after all.
static __always_inline int divert(int xdp, struct frame *f, struct packet *p, struct flow *flow, __u64 route, __u64 now)
{
	int undecided = !route_node(route) && READ_ONCE(flow->meta) & META_DIVERT, act;
	struct control *c = reading(now);
	enum reason reason;
	__u32 meta;

	if (!c) {
		if (!undecided)
			return -1;
		count(unread);
		return drop(xdp);
	}
	if (p->first) {
		count(split);
		if (p->key.proto != PROTO_UDP) // nobody puts segments together
			return undecided ? drop(xdp) : -1;
	}
	meta = number(flow);
	if (meta & META_DIVERT && !route_node(route))
		reason = REASON_UNDECIDED;
	else if (route & ROUTE_INSPECT)
		reason = REASON_INSPECT;
	else if (meta & META_DIVERT)
		reason = REASON_WAITING;
	else
		return -1;
	act = to_tap(xdp, f, c, meta, reason, route_node(route));
	if (p->first)
		remember(p, act < 0 ? 0 : FRAGMENT_TAP, meta, now);
	return act < 0 ? drop(xdp) : act;
}

// pending: the flow was granted to its node, and the process that did so has not had the time to say that the node has it.
static __always_inline int pending(struct flow *f)
{
	__u32 tick = coarse() >> TICK_SHIFT;

	return (__s32)(tick - READ_ONCE(f->seen)) < PENDING_TICKS;
}

static __always_inline int decide(int xdp, struct frame *f, struct packet *p)
{
	__u64 now, route, word, begin = 0;
	int opening, node, act;
	struct flow *flow;
	__u32 tick, meta;

	if (p->kind == KIND_LATER)
		return later(xdp, f, p);
	flow = find(&p->key);
	route = flow ? READ_ONCE(flow->route) : 0;
	if (p->kind == KIND_ERROR) {
		if (!flow || dead(route) || !route_node(route))
			return pass(xdp);
		count(errors);
		return send(xdp, f, route_node(route));
	}
	// A SYN, or the answer to one that a server has sent (FTP's active mode).
	opening = (p->flags & (TCP_SYN | TCP_RST | TCP_FIN)) == TCP_SYN;
	if (!flow && !opening && p->key.proto == PROTO_TCP)
		goto unknown;
	if (route & ROUTE_PENDING && !opening && pending(flow))
		goto unknown;
	now = coarse();
	if ((opening || p->key.proto == PROTO_UDP) && !(flow && settled(route, p->key.proto))) {
		begin = commence(&p->key, now, p->flags & TCP_ACK ? COMMENCE_ANSWER : p->first);
		if (begin & BEGIN_REFUSED)
			return drop(xdp);
		if (begin) {
			flow = assign(&p->key, flow, begin, now >> TICK_SHIFT);
			if (!flow) {
				// Unrecorded, the connection's next packet would find nobody; the client repeats its SYN.
				count(full);
				return drop(xdp);
			}
			route = READ_ONCE(flow->route);
		} else if (!(p->flags & TCP_ACK)) {
			// The tuple's next connection must not follow what was left for the last one.
			if (flow && !dead(route))
				cas(&flow->route, route, VERDICT_DEAD << 8);
			goto unknown;
		}
	}
	if (!flow || dead(route))
		goto unknown;
	tick = now >> TICK_SHIFT;
	meta = READ_ONCE(flow->meta);
	if ((!begin || begin & BEGIN_PROMISED) && degraded(meta))
		return drop(xdp);
	if (READ_ONCE(flow->seen) != tick)
		WRITE_ONCE(flow->seen, tick);
	word = route & ~(__u64)ROUTE_PENDING;
	if (!opening)
		word &= ~(__u64)ROUTE_FRESH;
	if (p->flags & (TCP_FIN | TCP_RST))
		word |= ROUTE_CLOSING;
	if (word != route)
		cas(&flow->route, route, word);
	node = route_node(route);
	if (meta & META_DIVERT || (route & ROUTE_INSPECT && node && !p->bare)) {
		act = divert(xdp, f, p, flow, route, now);
		if (act >= 0)
			return act;
		// It may just have been decided.
		node = route_node(READ_ONCE(flow->route));
	}
	if (p->first)
		remember(p, node, 0, now);
	if (!node)
		return pass(xdp);
	// Not atomic: that would keep the processor from beginning with the next packet's misses. A flow's packets usually
	// come by one queue; where they do not, one may be lost in the count.
	WRITE_ONCE(flow->forwarded, READ_ONCE(flow->forwarded) + 1);
	return send(xdp, f, node);
unknown:
	if (p->first)
		remember(p, 0, 0, 0);
	return pass(xdp);
}

SEC("tcx/ingress")
int rehome_forward(struct __sk_buff *skb)
{
	struct packet p = {};
	struct frame f = {.context = skb};
	__u32 want;

	if (skb->mark == MARK_DECIDED) {
		skb->mark = 0;
		return TCX_NEXT;
	}
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TCX_NEXT;
	if (skb->protocol == bpf_htons(ETH_IPV4))
		want = sizeof(struct ethernet) + sizeof(struct ipv4);
	else if (skb->protocol == bpf_htons(ETH_IPV6))
		want = sizeof(struct ethernet) + sizeof(struct ipv6);
	else
		return TCX_NEXT;
	if (skb->len < want)
		return TCX_NEXT;
	// Drivers may leave everything after the Ethernet header in fragments.
	if (skb->data + want > skb->data_end && bpf_skb_pull_data(skb, want))
		return TCX_NEXT;
	f.data = (void *)(long)skb->data;
	f.end = (void *)(long)skb->data_end;
	f.length = skb->len;
	f.segments = skb->gso_segs;
	f.ifindex = skb->ifindex;
	p.kind = skb->protocol == bpf_htons(ETH_IPV4) ? parse4(0, &f, &p) : parse6(0, &f, &p);
	if (!p.kind)
		return TCX_NEXT;
	return decide(0, &f, &p);
}

struct arp {
	__u16 hardware, protocol;
	__u8 sizes[2];
	__u16 operation;
	__u8 from[6], from_ip[4], to[6], to_ip[4];
} __attribute__((packed, aligned(2)));

// answered counts the answers to rehome_probe's question: ARP replies to the address 0.0.0.0, which nobody else asks with.
static __always_inline int answered(struct frame *f)
{
	struct ethernet *e = f->data;
	struct arp *a = (void *)(e + 1);

	if ((void *)(a + 1) <= f->end && e->type == bpf_htons(ETH_ARP) && a->operation == bpf_htons(2) && !a->to_ip[0] &&
	    !a->to_ip[1] && !a->to_ip[2] && !a->to_ip[3])
		count(probed);
	return XDP_PASS;
}

SEC("xdp.frags")
int rehome_xdp(struct xdp_md *xdp)
{
	struct packet p = {};
	struct frame f = {.context = xdp, .data = (void *)(long)xdp->data, .end = (void *)(long)xdp->data_end, .length = xdp->data_end - xdp->data};
	struct ethernet *e = f.data;
	__u32 ifindex = xdp->ingress_ifindex, at;
	struct port *port;

	if ((void *)(e + 1) > f.end)
		return XDP_PASS;
	if (e->type != bpf_htons(ETH_IPV4) && e->type != bpf_htons(ETH_IPV6) && e->type != bpf_htons(ETH_ARP))
		return XDP_PASS;
	at = ifindex % PORTS;
	port = bpf_map_lookup_elem(&ports, &at);
	if (!port || port->ifindex != ifindex || !same_mac(e->dst, port->mac))
		return XDP_PASS;
	if (e->type == bpf_htons(ETH_ARP))
		return answered(&f);
	f.ifindex = ifindex;
	p.kind = e->type == bpf_htons(ETH_IPV4) ? parse4(1, &f, &p) : parse6(1, &f, &p);
	if (!p.kind)
		return XDP_PASS;
	return decide(1, &f, &p);
}

// rehome_probe sends the frame it is run over out of the interface it is said to have come from, as rehome_xdp would.
SEC("xdp")
int rehome_probe(struct xdp_md *xdp) { return bpf_redirect(xdp->ingress_ifindex, 0); }

// rehome_listen stands in rehome_xdp's place until the probe was answered: it forwards nothing.
SEC("xdp.frags")
int rehome_listen(struct xdp_md *xdp)
{
	struct frame f = {.data = (void *)(long)xdp->data, .end = (void *)(long)xdp->data_end};

	return answered(&f);
}

// rehome_back sees what user space writes to the tap: frames that go to a node, or (node 0) to this host's own stack, as if
// the interface they came by had just received them.
SEC("tcx/ingress")
int rehome_back(struct __sk_buff *skb)
{
	struct frame f = {.context = skb, .data = (void *)(long)skb->data, .end = (void *)(long)skb->data_end, .length = skb->len};
	struct order *o = f.data;
	struct ethernet *e = f.data;
	struct port *port;
	__u32 node, at;

	if ((void *)(e + 1) > f.end || !is_order(o))
		return TCX_DROP;
	node = o->node;
	if (node)
		return send(0, &f, node);
	at = o->port;
	port = bpf_map_lookup_elem(&ports, &at);
	if (!port || !port->ifindex)
		return TCX_DROP;
	__builtin_memcpy(e->dst, port->mac, 6);
	skb->mark = MARK_DECIDED;
	return bpf_redirect(port->ifindex, BPF_F_INGRESS);
}

#include "operation.h"

char _license[] SEC("license") = "Dual BSD/GPL";
