// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Turns a hand-made segment into a connection of the local listener (bpf_sk_assign_tcp_reqsk, Linux 6.9).
//
// The first program sits at the ingress of a tun device that only the Injector writes to. Every queue of the device is a lane, and
// has a slot in the map, which the Injector has mapped: it says there what the next frame of the lane is for, and reads there what
// became of it when its write() returns, since the kernel receives the frame within that call.
//
// The second one sees what the kernel makes of the segment: the states of the child socket.
#include "../../../bpf/socket.h"

enum { MAX_LANES = 64 };

enum op {
	OP_NONE,
	OP_INJECT, // the first segment: becomes a connection
	OP_FOLLOW, // more of the stream, for the connection made
	OP_CHECK,  // look at the connection, and drop the frame
};

// What the first program says. What is at or above RESULT_ERRNO is that plus an error number of the kfunc.
enum result {
	RESULT_NONE, // the frame did not get here
	RESULT_PASSED,
	RESULT_NO_LISTENER,
	RESULT_EXISTS,
	RESULT_TIME_WAIT,
	RESULT_MPTCP,
	RESULT_BACKLOG,
	RESULT_WINDOW,
	RESULT_SYNCOOKIES,
	RESULT_FOUND,
	RESULT_ABSENT,
	RESULT_ERRNO = 1000,
};

// What the second program says.
enum outcome {
	OUTCOME_NONE, // the kernel has made no child
	OUTCOME_BORN, // a child, which it was about to equip
	OUTCOME_MADE, // that child is established
	OUTCOME_ENDED, // it was given up; if that was because the listener closed within this microsecond, with RST to the client
};

struct slot {
	// Written by the Injector.
	enum op op;
	__u32 ipv6;
	__u8 tuple[36]; // struct bpf_sock_tuple: source and destination address, then ports, in network order
	struct bpf_tcp_req_attrs attrs;
	__u32 rcv_isn;
	__u32 snt_isn;
	__u32 payload; // bytes that the frame brings
	__u32 attempt; // counts frames
	// Written by the programs.
	enum result result;
	enum outcome outcome;
	__u32 state;   // of the socket found
	__u32 rcv_nxt; // of that socket, as the following
	__u32 snd_nxt;
	__u32 window; // bytes it would take now; of RESULT_WINDOW, the most that a first segment may bring
	__u32 reserved[6]; // to two cache lines: lanes are on different CPUs
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_LANES);
	__type(key, __u32);
	__type(value, struct slot);
} rehome_lanes SEC(".maps");

// Which first segment the CPU is receiving, or has received last.
struct receiving {
	__u32 queue; // the lane's number plus one; 0: none
	__u32 attempt;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct receiving);
} rehome_current SEC(".maps");

static __always_inline struct bpf_sock *lookup(struct __sk_buff *skb, struct slot *s)
{
	if (s->ipv6)
		return bpf_skc_lookup_tcp(skb, s->tuple, 36, BPF_F_CURRENT_NETNS, 0);
	return bpf_skc_lookup_tcp(skb, s->tuple, 12, BPF_F_CURRENT_NETNS, 0);
}

// first_window is what the kernel will let a new connection of the listener receive at least (tcp_select_initial_window; what a
// route or net.ipv4.tcp_workaround_signed_windows take away is not known here).
static __always_inline __u32 first_window(struct tcp_sock *listener, struct bpf_tcp_req_attrs *attrs)
{
	__u64 buffer = (__u32)((struct sock *)listener)->sk_rcvbuf;
	__u32 window = buffer * listener->scaling_ratio >> 8;
	__u32 clamp = listener->window_clamp;

	if (clamp && window > clamp)
		window = clamp;
	if (!attrs->wscale_ok && window > 65535)
		window = 65535;
	if (attrs->mss && window > attrs->mss)
		window -= window % attrs->mss;
	return window;
}

static __always_inline __u32 assign(struct __sk_buff *skb, struct slot *s, struct bpf_sock *found)
{
	struct bpf_tcp_req_attrs attrs = s->attrs;
	struct receiving *current;
	struct tcp_sock *tp;
	struct sock *sk;
	__u32 zero = 0;
	int err;

	if (found->state == TCP_TIME_WAIT) {
		struct tcp_timewait_sock *tw = bpf_skc_to_tcp_timewait_sock(found);

		s->rcv_nxt = tw ? tw->tw_sk.__tw_common.skc_tw_rcv_nxt : 0;
		return tw ? RESULT_TIME_WAIT : RESULT_EXISTS;
	}
	if (found->state != TCP_LISTEN)
		return RESULT_EXISTS;
	if (bpf_skc_to_mptcp_sock(found))
		return RESULT_MPTCP;
	tp = bpf_skc_to_tcp_sock(found);
	if (!tp)
		return RESULT_NO_LISTENER;
	sk = (struct sock *)tp;
	// With cookies off the segment would be answered with RST.
	if (!sk->__sk_common.skc_net.net->ipv4.sysctl_tcp_syncookies)
		return RESULT_SYNCOOKIES;
	if (sk->sk_ack_backlog > sk->sk_max_ack_backlog)
		return RESULT_BACKLOG;
	s->window = first_window(tp, &attrs);
	if (s->payload > s->window)
		return RESULT_WINDOW;
	current = bpf_map_lookup_elem(&rehome_current, &zero);
	if (!current)
		return RESULT_NONE;
	err = bpf_sk_assign_tcp_reqsk(skb, sk, &attrs, sizeof(attrs));
	if (err && sk->__sk_common.skc_state != TCP_LISTEN)
		return RESULT_NO_LISTENER; // closed since the look
	if (err)
		return RESULT_ERRNO - err;
	current->queue = skb->queue_mapping;
	current->attempt = s->attempt;
	return RESULT_PASSED;
}

static __always_inline void look(struct slot *s, struct bpf_sock *found)
{
	struct tcp_sock *tp;

	s->state = found->state;
	tp = bpf_skc_to_tcp_sock(found);
	if (!tp)
		return;
	s->rcv_nxt = tp->rcv_nxt;
	s->snd_nxt = tp->snd_nxt;
	s->window = tp->rcv_wup + tp->rcv_wnd - tp->rcv_nxt;
}

SEC("tc")
int rehome_reqsk(struct __sk_buff *skb)
{
	__u32 lane = skb->queue_mapping - 1;
	enum result result;
	struct bpf_sock *found;
	struct slot *s = bpf_map_lookup_elem(&rehome_lanes, &lane);

	if (!s || s->op == OP_NONE)
		return TCX_DROP;
	found = lookup(skb, s);
	if (!found) {
		s->result = s->op == OP_INJECT ? RESULT_NO_LISTENER : RESULT_ABSENT;
		return TCX_DROP;
	}
	if (s->op == OP_INJECT) {
		result = assign(skb, s, found);
	} else if (found->state == TCP_LISTEN) {
		result = RESULT_ABSENT;
	} else {
		look(s, found);
		// The stack would answer a segment of no connection with RST.
		result = s->op == OP_FOLLOW && s->state != TCP_TIME_WAIT ? RESULT_PASSED : RESULT_FOUND;
	}
	bpf_sk_release(found);
	s->result = result;
	return result == RESULT_PASSED ? TCX_NEXT : TCX_DROP;
}

// Every socket's change of state. The child is made on the CPU, and within the softirq, that has run the program above; nothing else is
// received there in between. (fexit would do for this one function alone, but fewer kernels and sandboxes allow it.)
SEC("tp_btf/inet_sock_set_state")
int rehome_outcome(__u64 *ctx)
{
	int before = ctx[1], after = ctx[2];
	__u32 zero = 0, lane;
	struct receiving *current;
	struct tcp_sock *tp;
	struct slot *s;

	if (before != TCP_SYN_RECV && after != TCP_SYN_RECV)
		return 0;
	current = bpf_map_lookup_elem(&rehome_current, &zero);
	if (!current || !current->queue)
		return 0;
	lane = current->queue - 1;
	s = bpf_map_lookup_elem(&rehome_lanes, &lane);
	// What the lane sent may have been dropped on the way, and this be somebody else's.
	if (!s || s->op != OP_INJECT || s->attempt != current->attempt)
		return 0;
	if (after == TCP_SYN_RECV) {
		// As yet it is a copy of the listener, and has nothing to know it by.
		s->outcome = OUTCOME_BORN;
		return 0;
	}
	tp = bpf_skc_to_tcp_sock((void *)ctx[0]);
	if (!tp || tp->rcv_nxt != s->rcv_isn + 1 || tp->snd_nxt != s->snt_isn + 1)
		return 0;
	current->queue = 0;
	s->outcome = after == TCP_ESTABLISHED ? OUTCOME_MADE : OUTCOME_ENDED;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
