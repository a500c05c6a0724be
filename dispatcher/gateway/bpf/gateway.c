// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The packet path of the gateway: one program at the interface towards the servers, which leads their signalling to a tap,
// and one at the tap, which leads it back.
#include "packet.h"

// Marks a frame that user space has released; it is not diverted again.
#define MARK_RELEASED 0x72686777u

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const void *)a, *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline struct service *service_of(struct packet *p)
{
	struct service_key k = {};

	__builtin_memcpy(k.addr, p->flow.server, 16);
	k.port = p->flow.server_port;
	k.proto = p->flow.proto;
	k.family = p->flow.family;
	return bpf_map_lookup_elem(&services, &k);
}

// awake: a process reads the tap, or has done so lately.
static __always_inline int awake(void)
{
	__u32 zero = 0;
	struct beat *s = bpf_map_lookup_elem(&heartbeat, &zero);

	return s && READ_ONCE(s->until) > bpf_ktime_get_coarse_ns();
}

SEC("tcx/ingress")
int rehome_gateway(struct __sk_buff *skb)
{
	struct packet p = {};
	struct source_key from = {};
	struct service *s;
	struct port *tap;
	__u32 *role, ifindex = skb->ifindex;

	if (skb->mark == MARK_RELEASED) {
		skb->mark = 0;
		bpf_skb_change_type(skb, PACKET_HOST);
		count(released);
		return TCX_NEXT;
	}
	if (skb->pkt_type != PACKET_HOST || !parse(skb, &p))
		return TCX_NEXT;
	s = service_of(&p);
	if (!s)
		return TCX_NEXT;
	if (!awake()) {
		count(lapsed);
		return TCX_NEXT;
	}
	from.service = s->id;
	if (bpf_skb_load_bytes(skb, 6, from.mac, sizeof(from.mac)))
		return TCX_NEXT;
	role = bpf_map_lookup_elem(&sources, &from);
	if (!role) {
		if (s->strict) {
			count(refused);
			return TCX_DROP;
		}
		count(unverified);
		return TCX_NEXT;
	}
	// A bare acknowledgement may overtake: TCP does not mind, and one that brings nothing to read is not waited for.
	if (*role != SOURCE_SERVER || !p.payload)
		return TCX_NEXT;
	if (p.fragment) {
		count(fragments);
		return TCX_NEXT;
	}
	// A SYN begins another connection than the one that was exempt.
	if (!p.syn && bpf_map_lookup_elem(&exemptions, &p.flow)) {
		count(exempt);
		return TCX_NEXT;
	}
	tap = bpf_map_lookup_elem(&ports, &ifindex);
	if (!tap || !tap->ifindex) {
		count(no_tap);
		return TCX_NEXT;
	}
	count(diverted);
	// The tap has no segmentation offload: the kernel cuts a GSO packet before user space sees it.
	return bpf_redirect(tap->ifindex, 0);
}

// rehome_gw_back sees what user space writes to a tap: frames that came out of it, unchanged.
SEC("tcx/ingress")
int rehome_gw_back(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	__u8 mac[6];

	if (!port || !port->ifindex || bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)) || !same_mac(mac, port->mac))
		return TCX_DROP;
	skb->mark = MARK_RELEASED;
	return bpf_redirect(port->ifindex, BPF_F_INGRESS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
