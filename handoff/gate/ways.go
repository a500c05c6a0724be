// SPDX-License-Identifier: Apache-2.0

package gate

// Ways says in one line which of the two ways to hold and forward packets a machine allows: this package's, and package nft's.
func Ways(bpf []Finding, nft Finding) string {
	ok := true
	for _, f := range bpf {
		ok = ok && (f.OK || !f.Required)
	}
	switch {
	case ok && nft.OK:
		return "this machine allows both BPF and nftables"
	case ok:
		return "this machine allows BPF; nftables cannot do it"
	case nft.OK:
		return "this machine refuses BPF, and allows nftables (gate.mode: nft at an agent, forward.mode: nft at a dispatcher)"
	}
	return "this machine allows neither BPF nor nftables"
}
