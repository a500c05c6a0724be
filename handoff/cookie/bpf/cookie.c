// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The backend's side: a client's first packet with a valid cookie becomes a connection of the local listener (bpf_sk_assign_tcp_reqsk,
// Linux 6.9). Nothing in user space takes part.
#include "cookie.h"

enum reason {
	REASON_NONE,
	REASON_NO_LISTENER,
	REASON_MPTCP,
	REASON_BACKLOG,
	REASON_SYNCOOKIES, // net.ipv4.tcp_syncookies is 0
	REASON_TIME_WAIT,  // an old connection of the tuple, which the packet may belong to
	REASON_KERNEL,	   // the kfunc refused; errno says why
	REASON_ENDED,	   // not reported: the packet is a late copy
};

enum phase {
	PHASE_NONE,
	PHASE_TRIED, // given to the kernel, which may have refused it
	PHASE_MADE,
	PHASE_REFUSED,
};

// struct known is what has become of a first packet: it must not become a connection twice, and while another host is being
// asked, the stack must not answer what follows with RST.
struct known {
	__u32 cookie, isn;
	enum phase phase;
	__u32 when; // 2^30 ns
	enum reason why; // of PHASE_REFUSED
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 17);
	__type(key, struct flow);
	__type(value, struct known);
} history SEC(".maps");

// What the CPU is giving to the kernel.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} current SEC(".maps");

struct counters {
	__u64 made;	// seen to be established, where the second program is attached
	__u64 tried;	// given to the kernel
	__u64 refused;	// reported
	__u64 late;	// copies of first packets whose connection has ended
	__u64 strays;	// without socket and valid cookie, left to the stack
	__u64 awaited;	// dropped, for another host is being asked
	__u64 cleared;	// TIME_WAIT ended for a new connection
	__u64 lost;	// reports
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

struct report {
	struct flow flow;
	__u32 isn, cookie;
	enum reason reason;
	__u32 errno;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} reports SEC(".maps");

// The kernel's own patience with a TIME_WAIT that does not go: the mark that the packet has come back with.
enum { MARK_CLEARED = 0x72680001 };
// How long strays of a refused connection are kept from the stack, in units of 2^30 ns.
enum { REFUSED_TIME = 8 };

// FAR is more than the dispatcher can measure, in ms.
enum { FAR = 2048 };

static __always_inline __u32 seconds(void) { return bpf_ktime_get_coarse_ns() >> 30; }

static __always_inline int refuse(struct segment *s, enum reason why, __u32 errno)
{
	struct known k = {.cookie = s->ack - 1, .isn = s->seq - 1, .phase = PHASE_REFUSED, .when = seconds(), .why = why};
	struct report *r;

	bpf_map_update_elem(&history, &s->flow, &k, BPF_ANY);
	count(refused);
	r = bpf_ringbuf_reserve(&reports, sizeof(*r), 0);
	if (!r) {
		count(lost);
		return TCX_DROP;
	}
	__builtin_memcpy(&r->flow, &s->flow, sizeof(r->flow));
	r->isn = k.isn;
	r->cookie = k.cookie;
	r->reason = why;
	r->errno = errno;
	bpf_ringbuf_submit(r, 0);
	return TCX_DROP;
}

// clear ends a TIME_WAIT that stands in the way of a new connection. A SYN would have done so (RFC 6191), but the dispatcher has answered
// that. A copy of the packet, made a RST that the old connection accepts, goes first through the stack, and then the packet
// itself comes anew.
static __always_inline int clear(struct __sk_buff *skb, struct segment *s, __u32 expected)
{
	__u32 at = s->at, seq[2], old[2];
	__u16 flags[2], was[2];

	old[0] = bpf_htonl(s->seq);
	seq[0] = bpf_htonl(expected);
	if (bpf_skb_load_bytes(skb, at + 12, was, 2))
		return TCX_DROP;
	flags[0] = (was[0] & 0x00ff) | (__u16)TCP_RST << 8;
	// Checksums are corrected for the two fields, whether they are complete or left to the hardware.
	bpf_l4_csum_replace(skb, at + offset_of(struct tcp, checksum), old[0], seq[0], 4);
	bpf_l4_csum_replace(skb, at + offset_of(struct tcp, checksum), was[0], flags[0], 2);
	bpf_skb_store_bytes(skb, at + offset_of(struct tcp, seq), seq, 4, 0);
	bpf_skb_store_bytes(skb, at + 12, flags, 2, 0);
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	bpf_skb_store_bytes(skb, at + offset_of(struct tcp, seq), old, 4, 0);
	bpf_skb_store_bytes(skb, at + 12, was, 2, 0);
	bpf_l4_csum_replace(skb, at + offset_of(struct tcp, checksum), flags[0], was[0], 2);
	bpf_l4_csum_replace(skb, at + offset_of(struct tcp, checksum), seq[0], old[0], 4);
	count(cleared);
	skb->mark = MARK_CLEARED;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline int assign(struct __sk_buff *skb, struct segment *s, struct setting *c, struct bpf_sock *found, __u32 choice)
{
	struct known k = {.cookie = s->ack - 1, .isn = s->seq - 1, .phase = PHASE_TRIED, .when = seconds()};
	struct bpf_tcp_req_attrs a = {};
	struct flow *current_flow;
	struct tcp_sock *tp;
	struct sock *sk;
	__u32 zero = 0;
	int err;

	if (bpf_skc_to_mptcp_sock(found))
		return refuse(s, REASON_MPTCP, 0);
	tp = bpf_skc_to_tcp_sock(found);
	if (!tp)
		return refuse(s, REASON_NO_LISTENER, 0);
	sk = (struct sock *)tp;
	if (!sk->__sk_common.skc_net.net->ipv4.sysctl_tcp_syncookies)
		return refuse(s, REASON_SYNCOOKIES, 0);
	if (sk->sk_ack_backlog > sk->sk_max_ack_backlog)
		return refuse(s, REASON_BACKLOG, 0);
	a.mss = chosen_mss(choice, s->flow.family);
	if (s->timestamps) {
		a.tstamp_ok = 1;
		a.rcv_tsval = s->tsval;
		// The kernel takes the difference for the first round-trip time. The dispatcher has measured that.
		a.rcv_tsecr = s->tsecr + (s->urgent < FAR && !(s->flags & TCP_URG) ? s->urgent : 0);
		a.sack_ok = !!(choice & CHOICE_SACK);
		a.ecn_ok = !!(choice & CHOICE_ECN);
		if ((choice & CHOICE_SCALE) != NO_SCALE) {
			a.wscale_ok = 1;
			a.snd_wscale = choice & CHOICE_SCALE;
			a.rcv_wscale = c->scale;
		}
	}
	err = bpf_sk_assign_tcp_reqsk(skb, sk, &a, sizeof(a));
	if (err && sk->__sk_common.skc_state != TCP_LISTEN)
		return refuse(s, REASON_NO_LISTENER, 0); // closed since the look
	if (err)
		return refuse(s, REASON_KERNEL, -err);
	current_flow = bpf_map_lookup_elem(&current, &zero);
	if (current_flow)
		__builtin_memcpy(current_flow, &s->flow, sizeof(*current_flow));
	bpf_map_update_elem(&history, &s->flow, &k, BPF_ANY);
	count(tried);
	return TCX_NEXT;
}

static __always_inline int newcomer(struct __sk_buff *skb, struct segment *s, struct bpf_sock *found, int back)
{
	struct tcp_timewait_sock *tw;
	struct setting *c = setting();
	struct known *k;
	__u32 choice, expected, made;

	if (!c)
		return TCX_NEXT;
	read_options(skb, s);
	k = bpf_map_lookup_elem(&history, &s->flow);
	if (!recall(c, s, &choice, &made)) {
		if (k && k->phase == PHASE_REFUSED && seconds() - k->when < REFUSED_TIME) {
			count(awaited);
			return TCX_DROP;
		}
		count(strays);
		return TCX_NEXT;
	}
	if (k && k->phase == PHASE_MADE && k->cookie == s->ack - 1 && k->isn == s->seq - 1) {
		count(late);
		return TCX_DROP;
	}
	if (!found)
		return refuse(s, REASON_NO_LISTENER, 0);
	if (found->state == TCP_TIME_WAIT) {
		tw = bpf_skc_to_tcp_timewait_sock(found);
		if (!tw || back)
			return refuse(s, REASON_TIME_WAIT, 0);
		expected = tw->tw_sk.__tw_common.skc_tw_rcv_nxt;
		// The kernel's condition for a SYN.
		if ((__s32)(expected - s->seq) < 0 || (s->timestamps && tw->tw_ts_recent && (__s32)(tw->tw_ts_recent - s->tsval) < 0))
			return clear(skb, s, expected);
		return refuse(s, REASON_TIME_WAIT, 0);
	}
	return assign(skb, s, c, found, choice);
}

SEC("tcx/ingress")
int rehome_cookie(struct __sk_buff *skb)
{
	struct segment s = {};
	struct bpf_sock *found;
	int verdict = TCX_NEXT, back = 0;

	if (skb->mark == MARK_CLEARED) {
		skb->mark = 0;
		back = 1;
	}
	if (!parse(skb, &s))
		return TCX_NEXT;
	// Only a packet with something in it begins a connection. Acknowledgements, most of what clients send, end here.
	if ((s.flags & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_ACK || (!s.payload && !(s.flags & TCP_FIN)))
		return TCX_NEXT;
	if (!serves(&s.flow))
		return TCX_NEXT;
	found = find_socket(skb, &s.flow);
	if (!found)
		return newcomer(skb, &s, 0, back);
	if (found->state == TCP_LISTEN || found->state == TCP_TIME_WAIT)
		verdict = newcomer(skb, &s, found, back);
	bpf_sk_release(found);
	return verdict;
}

// Every socket's change of state. The child is made on the CPU, and within the softirq, that has run the program above; nothing else
// is received there in between.
SEC("tp_btf/inet_sock_set_state")
int rehome_made(__u64 *ctx)
{
	int before = ctx[1], after = ctx[2];
	struct flow *f;
	struct known *k;
	__u32 zero = 0;

	if (before != TCP_SYN_RECV || after != TCP_ESTABLISHED)
		return 0;
	f = bpf_map_lookup_elem(&current, &zero);
	if (!f || !f->family)
		return 0;
	k = bpf_map_lookup_elem(&history, f);
	if (k) {
		struct tcp_sock *tp = bpf_skc_to_tcp_sock((void *)ctx[0]);

		if (!tp || tp->rcv_nxt != k->isn + 1 || tp->snd_nxt != k->cookie + 1)
			return 0;
		k->phase = PHASE_MADE;
		count(made);
	}
	f->family = 0;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
