// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// Tells user space when connections of chosen services end. See doc.go for what the kernel calls when.
#include "callback.h"

struct service {
	__u32 addr[4]; // an IPv4 address in the first word
	__u32 port;
	__u32 family; // 4, 6
};

struct end {
	__u32 local[4], remote[4]; // an IPv4 address in the first word
	__u16 local_port, remote_port;
	__u8 family; // 4, 6
	__u8 state;  // that the connection was in
	__u8 pad[2];
};

// Several watchers share a cgroup: each is for one network namespace.
volatile const __u64 netns;

// Ends that found the ring full.
__u64 lost;

// Puts the type into the object's BTF, from which its Go twin is made.
struct end *shape __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service);
	__type(value, __u8);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ends SEC(".maps");

// The context's fields may only be read one by one, at constant offsets.
#define read_addr(to, field)                                                                                           \
	do {                                                                                                           \
		(to)[0] = ctx->field[0];                                                                               \
		(to)[1] = ctx->field[1];                                                                               \
		(to)[2] = ctx->field[2];                                                                               \
		(to)[3] = ctx->field[3];                                                                               \
	} while (0)

static __always_inline int is_mapped(const __u32 *addr) { return !addr[0] && !addr[1] && addr[2] == bpf_htonl(0xffff); }

// local_of fills in the socket's own end. A connection of an IPv6 socket to an IPv4 client is an IPv4 flow: that is what the wire sees.
static __always_inline int local_of(struct bpf_sock_ops *ctx, struct service *s)
{
	s->port = ctx->local_port;
	if (ctx->family == AF_INET) {
		s->family = 4;
		s->addr[0] = ctx->local_ip4;
		return 1;
	}
	if (ctx->family != AF_INET6)
		return 0;
	read_addr(s->addr, local_ip6);
	s->family = 6;
	if (is_mapped(s->addr)) {
		s->family = 4;
		s->addr[0] = s->addr[3];
		s->addr[2] = s->addr[3] = 0;
	}
	return 1;
}

// in_repair reads the socket's repair bit, wherever this kernel keeps it.
static __always_inline int in_repair(struct bpf_sock_ops *ctx)
{
	struct tcp_sock *tp;
	void *sk = (void *)ctx->sk, *at;
	__u64 word;

	if (!sk)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	at = (void *)tp + __builtin_preserve_field_info(tp->repair, FIELD_BYTE_OFFSET);
	asm volatile("" : "+r"(at)); // keeps the offset in one place, where it is relocated
	switch (__builtin_preserve_field_info(tp->repair, FIELD_BYTE_SIZE)) {
	case 1:
		word = *(__u8 *)at;
		break;
	case 2:
		word = *(__u16 *)at;
		break;
	case 4:
		word = *(__u32 *)at;
		break;
	case 8:
		word = *(__u64 *)at;
		break;
	default:
		return 0;
	}
	word <<= __builtin_preserve_field_info(tp->repair, FIELD_LSHIFT_U64);
	return word >> __builtin_preserve_field_info(tp->repair, FIELD_RSHIFT_U64) != 0;
}

static __always_inline void report(struct bpf_sock_ops *ctx, const struct service *s)
{
	struct end *e = bpf_ringbuf_reserve(&ends, sizeof(*e), 0);

	if (!e) {
		__sync_fetch_and_add(&lost, 1);
		return;
	}
	e->local[0] = s->addr[0];
	e->local[1] = s->addr[1];
	e->local[2] = s->addr[2];
	e->local[3] = s->addr[3];
	if (ctx->family == AF_INET) {
		e->remote[0] = ctx->remote_ip4;
		e->remote[1] = e->remote[2] = e->remote[3] = 0;
	} else {
		read_addr(e->remote, remote_ip6);
		if (s->family == 4) {
			e->remote[0] = e->remote[3];
			e->remote[2] = e->remote[3] = 0;
		}
	}
	e->local_port = s->port;
	e->remote_port = bpf_ntohl(ctx->remote_port);
	e->family = s->family;
	e->state = ctx->args[0];
	e->pad[0] = e->pad[1] = 0;
	bpf_ringbuf_submit(e, 0);
}

SEC("sockops")
int rehome_ended(struct bpf_sock_ops *ctx)
{
	struct service s = {};
	__u32 op = ctx->op;

	if (op == BPF_SOCK_OPS_STATE_CB) {
		// A socket that never was connected, or is closed already, has nothing to end.
		if (ctx->args[1] != TCP_CLOSE || ctx->args[0] == TCP_CLOSE)
			return 1;
	} else if (op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		return 1;
	}
	if (bpf_get_netns_cookie(ctx) != netns || !local_of(ctx, &s) || !bpf_map_lookup_elem(&watched, &s))
		return 1;
	if (op != BPF_SOCK_OPS_STATE_CB) {
		// The call replaces all flags: others' must stay.
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		return 1;
	}
	// In repair mode a socket is closed because its connection lives elsewhere.
	if (!in_repair(ctx))
		report(ctx, &s);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
