// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"

	"github.com/rehome-net/rehome/handoff/gate"
)

// Probe looks at what the machine offers for a forwarder, without changing it and without opening one. Whether XDP works
// on an interface only Open can tell.
func Probe() []gate.Finding {
	return []gate.Finding{
		found("kernel has BPF syscall programs", features.HaveProgramType(ebpf.Syscall), true, "needs Linux 5.17 with CONFIG_BPF_SYSCALL"),
		found("kernel has bpf_loop", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnLoop), true, "needs Linux 5.17"),
		found("kernel has the coarse clock for BPF", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs), true, "needs Linux 5.11"),
		found("kernel has tcx", haveTCX(), true, "needs Linux 6.6 with CONFIG_NET_XGRESS; a dispatcher that only hands over TCP connections can do without, with forward.mode: nft"),
		found("kernel has bpf_redirect_peer", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectPeer), false, "needs Linux 5.10"),
		found("kernel has XDP with fragments", features.HaveProgramHelper(ebpf.XDP, asm.FnXdpLoadBytes), true, "needs Linux 5.18"),
	}
}

func found(name string, err error, required bool, advice string) gate.Finding {
	f := gate.Finding{Name: name, OK: err == nil, Required: required}
	if err != nil {
		f.Detail = fmt.Sprintf("%v: %s", err, advice)
	}
	return f
}
