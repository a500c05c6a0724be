// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#include "callback.h"

struct seed {
	__u32 cwnd; // packets
};

// By socket cookie. The oldest go when a process forgets to take back what it does not use.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct seed);
} seeds SEC(".maps");

SEC("sockops")
int rehome_seed(struct bpf_sock_ops *ctx)
{
	struct seed *s;
	__u64 cookie;
	int cwnd;

	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		return 1;
	cookie = bpf_get_socket_cookie(ctx);
	s = bpf_map_lookup_elem(&seeds, &cookie);
	if (!s)
		return 1;
	cwnd = s->cwnd;
	bpf_setsockopt(ctx, SOL_TCP, TCP_BPF_IW, &cwnd, sizeof(cwnd));
	bpf_map_delete_elem(&seeds, &cookie);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
