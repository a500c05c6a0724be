// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The gateway's tables: which packets are signalling, whose they may be, and who reads them.
#ifndef REHOME_GATEWAY_TABLE_H
#define REHOME_GATEWAY_TABLE_H

#include "../../../bpf/header.h"

// A service, as its servers' packets name it: their source.
struct service_key {
	__u32 addr[4]; // an IPv4 address in the first word
	__u16 port;
	__u8 proto, family;
};

struct service {
	__u32 id;
	__u32 strict; // all servers' link-layer addresses are known: whoever else uses the address is refused
};

// Who may send for a service.
struct source_key {
	__u32 service;
	__u8 mac[6];
	__u16 pad;
};

enum {
	SOURCE_SERVER = 1,
	SOURCE_ENTRY = 2, // the dispatcher answers for the address before it hands a connection off: not diverted
};

struct flow_key {
	__u32 server[4], client[4];
	__u16 server_port, client_port;
	__u8 proto, family;
	__u16 pad;
};

// A port leads from a watched interface to its tap and from a tap to its interface.
struct port {
	__u32 ifindex;
	__u8 mac[6]; // of the interface
	__u8 pad[2];
};

struct beat {
	__u64 until; // CLOCK_MONOTONIC: nobody reads the tap after that
};

struct counters {
	__u64 diverted;
	__u64 released;
	__u64 refused;	  // from a host that is no server of the service
	__u64 unverified; // from an unknown host while not all servers are known
	__u64 lapsed;	  // passed: nobody reads the tap
	__u64 exempt;	  // passed: of a flow that nothing more can be read of
	__u64 fragments;  // passed
	__u64 no_tap;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, __u32);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, __u32);
} exemptions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct beat);
} heartbeat SEC(".maps");

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

#endif
