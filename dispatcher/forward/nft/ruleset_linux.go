// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// freshTimeout is for how long a SYN counts. Run looks at fresh connections far more often.
const freshTimeout = 5 * time.Minute

// priority is where the chains stand among others of an interface: early.
const priority = -300

// Offsets in headers.
const (
	ethernetDst = 0
	ethernetSrc = 6
	tcpPorts    = 0
	tcpFlags    = 13
)

const (
	tcpSYN  = 0x02
	tcpKind = 0x17 // SYN, ACK, RST, FIN
)

// version is what differs between IPv4 and IPv6.
type version struct {
	etherType    uint16
	src, dst     uint32 // offsets of the addresses
	length       uint32 // of an address
	fresh, flows *nftables.Set
}

// ruleset are the names of what is in the kernel.
type ruleset struct {
	table    *nftables.Table
	versions [2]version // IPv4, IPv6
}

func newRuleset(name string) *ruleset {
	t := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: name}
	set := func(name string, address nftables.SetDatatype, fresh bool) *nftables.Set {
		key, err := nftables.ConcatSetType(address, nftables.TypeInetService, address, nftables.TypeInetService)
		if err != nil {
			return nil // four types always fit
		}
		s := &nftables.Set{Table: t, Name: name, KeyType: key, Concatenation: true, Size: maxFresh}
		if fresh {
			s.Dynamic, s.HasTimeout, s.Timeout = true, true, freshTimeout
		} else {
			s.IsMap, s.DataType, s.Size = true, nftables.TypeVerdict, 0
		}
		return s
	}
	return &ruleset{table: t, versions: [2]version{
		{unix.ETH_P_IP, 12, 16, 4, set("fresh4", nftables.TypeIPAddr, true), set("flows4", nftables.TypeIPAddr, false)},
		{unix.ETH_P_IPV6, 8, 24, 16, set("fresh6", nftables.TypeIP6Addr, true), set("flows6", nftables.TypeIP6Addr, false)},
	}}
}

// of returns the version of an address.
func (r *ruleset) of(v4 bool) *version {
	if v4 {
		return &r.versions[0]
	}
	return &r.versions[1]
}

// hookName is the name of an interface's chain, which may have 31 characters.
func hookName(device string) string { return "ingress-" + device }

// hook is the chain at an interface.
func (r *ruleset) hook(device string) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Table: r.table, Name: hookName(device), Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityRef(priority), Policy: &policy, Device: device,
	}
}

// isHook tells a chain of a former configuration.
func isHook(name string) bool { return strings.HasPrefix(name, hookName("")) }

func (r *ruleset) node(name string) *nftables.Chain {
	return &nftables.Chain{Table: r.table, Name: name}
}

// hookRules are the rules of such a chain, in order.
func (r *ruleset) hookRules() (rules [][]expr.Any) {
	for i := range r.versions {
		v := &r.versions[i]
		syn := append(v.match(), v.load()...)
		syn = append(syn,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpKind}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{tcpSYN}},
		)
		syn = append(syn, v.load()...) // the first part of the key is where the flags were
		syn = append(syn,
			&expr.Dynset{SrcRegKey: unix.NFT_REG32_00, SetName: v.fresh.Name, SetID: v.fresh.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: freshTimeout},
			&expr.Verdict{Kind: expr.VerdictAccept},
		)
		known := append(append(v.match(), v.load()...),
			&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: v.fresh.Name, SetID: v.fresh.ID},
			&expr.Verdict{Kind: expr.VerdictAccept},
		)
		forward := append(append(v.match(), v.load()...),
			&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: v.flows.Name, SetID: v.flows.ID, IsDestRegSet: true},
		)
		rules = append(rules, syn, known, forward)
	}
	return rules
}

// match is true of TCP over this version in frames for this host.
func (v *version) match() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.PACKET_HOST}},
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(v.etherType)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// load puts the key into the registers from NFT_REG32_00 on.
func (v *version) load() []expr.Any {
	at := uint32(unix.NFT_REG32_00)
	words := v.length / 4
	return []expr.Any{
		&expr.Payload{DestRegister: at, Base: expr.PayloadBaseNetworkHeader, Offset: v.src, Len: v.length},
		&expr.Payload{DestRegister: at + words, Base: expr.PayloadBaseTransportHeader, Offset: tcpPorts, Len: 2},
		&expr.Payload{DestRegister: at + words + 1, Base: expr.PayloadBaseNetworkHeader, Offset: v.dst, Len: v.length},
		&expr.Payload{DestRegister: at + 2*words + 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpPorts + 2, Len: 2},
	}
}

// nodeRule sends a frame out of an interface with other addresses.
func nodeRule(ifindex int, dst, src net.HardwareAddr) []expr.Any {
	write := func(mac net.HardwareAddr, at uint32) []expr.Any {
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: mac},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: at, Len: 6},
		}
	}
	rule := append(write(dst, ethernetDst), write(src, ethernetSrc)...)
	return append(rule,
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(ifindex))},
		&expr.Dup{RegAddr: 1, RegDev: 1, IsRegDevSet: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
}
