// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The packet path of the forwarder, once as a tcx program and once as an XDP program. See doc.go for what the states mean.
#include "packet.h"

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const void *)a, *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline int pass(int xdp) { return xdp ? XDP_PASS : TCX_NEXT; }
static __always_inline int drop(int xdp) { return xdp ? XDP_DROP : TCX_DROP; }

// send gives the frame to a node, unchanged but for its addresses.
static __always_inline int send(int xdp, struct frame *f, __u32 id)
{
	struct node *n = bpf_map_lookup_elem(&nodes, &id);
	struct ethernet *e = f->data;
	__u8 mac[12];

	if (!n || !n->ifindex) {
		count(no_node);
		return drop(xdp); // the stack would answer RST
	}
	if ((void *)(e + 1) > f->end)
		return drop(xdp);
	__builtin_memcpy(mac, n->dst, 6);
	__builtin_memcpy(mac + 6, n->src, 6);
	// Never back to where it came from.
	if (same_mac(e->src, mac)) {
		count(loop);
		return drop(xdp);
	}
	__builtin_memcpy(e, mac, sizeof(mac));
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

// choose returns the node that the next flow to the packet's service goes to, or -1 when nobody takes it.
static __noinline int choose(const struct key *k)
{
	struct service_key s = {};
	struct choice c = {.node = -1};

	s.addr[0] = k->local[0];
	s.addr[1] = k->local[1];
	s.addr[2] = k->local[2];
	s.addr[3] = k->local[3];
	s.port = k->ports >> 16;
	s.proto = k->proto;
	s.family = k->family;
	c.service = bpf_map_lookup_elem(&services, &s);
	if (!c.service)
		return -1;
	c.start = __sync_fetch_and_add(&c.service->next, 1);
	bpf_loop(SERVICE_NODES, try_node, &c, 0);
	return c.node;
}

static __always_inline int dead(__u64 route) { return route_verdict(route) >= VERDICT_DEAD; }

// settled: a first packet of this kind does not decide anew.
static __always_inline int settled(__u64 route, __u8 proto)
{
	return !dead(route) && (proto == PROTO_UDP || route & ROUTE_FRESH);
}

// assign records where a new flow goes and returns its entry, or 0 when it could not be recorded. *route is what holds
// now. Another packet may race for it; whoever came first is followed.
static __always_inline struct flow *assign(const struct key *k, struct flow *f, __u16 node, __u32 now, __u64 *route)
{
	__u64 old, seen, new = route_word(1, node, ROUTE_ENTRY | (k->proto == PROTO_TCP ? ROUTE_FRESH : 0));

	if (f && route_verdict(READ_ONCE(f->route)) == VERDICT_GONE)
		f = 0;
	if (!f) {
		f = insert(k, new, now);
		if (!f)
			return 0;
	}
	old = READ_ONCE(f->route);
	if (route_verdict(old) == VERDICT_GONE)
		return 0;
	if (!settled(old, k->proto)) {
		WRITE_ONCE(f->seen, now);
		seen = cas(&f->route, old, new);
		old = seen == old ? new : seen;
	}
	if (dead(old))
		return 0;
	if (old == new)
		count(assigned);
	*route = old;
	return f;
}

static __always_inline int later(int xdp, struct frame *f, struct packet *p)
{
	struct fragment *known = bpf_map_lookup_elem(&fragments, &p->fragment);

	if (!known || known->seen + FRAGMENT_TIME < bpf_ktime_get_coarse_ns())
		return pass(xdp);
	count(fragments);
	return send(xdp, f, known->node);
}

// remember tells the fragments that follow where the first one went.
static __always_inline void remember(struct packet *p, __u16 node, __u64 now)
{
	struct fragment v = {.seen = now, .node = node};

	if (!node) {
		// Another packet's number may have come round.
		bpf_map_delete_elem(&fragments, &p->fragment);
		return;
	}
	count(fragments);
	bpf_map_update_elem(&fragments, &p->fragment, &v, BPF_ANY);
}

static __always_inline int decide(int xdp, struct frame *f, struct packet *p)
{
	__u64 now, route, word;
	struct flow *flow;
	__u32 tick;
	int syn, node;

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
	syn = (p->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	if (!flow && !syn && p->key.proto == PROTO_TCP)
		goto unknown;
	now = bpf_ktime_get_coarse_ns();
	tick = now >> TICK_SHIFT;
	if ((syn || p->key.proto == PROTO_UDP) && !(flow && settled(route, p->key.proto))) {
		node = choose(&p->key);
		if (node < 0) {
			// The tuple's next connection must not follow what was left for the last one.
			if (flow && !dead(route))
				cas(&flow->route, route, VERDICT_DEAD << 8);
			goto unknown;
		}
		flow = assign(&p->key, flow, node, tick, &route);
		if (!flow) {
			// Unrecorded, the connection's next packet would find nobody; the client repeats its SYN.
			count(full);
			return drop(xdp);
		}
	}
	if (!flow || dead(route))
		goto unknown;
	if (READ_ONCE(flow->seen) != tick)
		WRITE_ONCE(flow->seen, tick);
	word = route;
	if (!syn)
		word &= ~(__u64)ROUTE_FRESH;
	if (p->flags & (TCP_FIN | TCP_RST))
		word |= ROUTE_CLOSING;
	if (word != route)
		cas(&flow->route, route, word);
	node = route_node(route);
	if (p->first)
		remember(p, node, now);
	if (!node)
		return pass(xdp);
	// Not atomic: that would keep the processor from beginning with the next packet's misses. A flow's packets usually
	// come by one queue; where they do not, one may be lost in the count.
	WRITE_ONCE(flow->forwarded, READ_ONCE(flow->forwarded) + 1);
	return send(xdp, f, node);
unknown:
	if (p->first)
		remember(p, 0, 0);
	return pass(xdp);
}

SEC("tcx/ingress")
int rehome_forward(struct __sk_buff *skb)
{
	struct packet p = {};
	struct frame f = {.context = skb};
	__u32 want;

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
	f.gso = skb->gso_segs != 0;
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

#include "operation.h"

char _license[] SEC("license") = "Dual BSD/GPL";
