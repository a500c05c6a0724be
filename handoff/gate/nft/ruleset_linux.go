// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// freshTimeout is for how long a SYN counts. Run looks at fresh connections far more often.
const freshTimeout = 5 * time.Minute

// priority is where the chains stand among others of an interface: early.
const priority = -300

// Offsets in headers.
const (
	ethernetDst = 0
	ethernetSrc = 6

	tcpSource      = 0
	tcpDestination = 2
	tcpFlags       = 13
)

const (
	tcpSYN  = 0x02
	tcpKind = 0x17 // SYN, ACK, RST, FIN
)

// version is what differs between IPv4 and IPv6.
type version struct {
	etherType uint16
	src, dst  uint32 // offsets of the addresses
	length    uint32 // of an address
	// See doc.go.
	held, kept, muted, fresh, flows, seen, strays *nftables.Set
}

func (v *version) sets() []*nftables.Set {
	return []*nftables.Set{v.held, v.kept, v.muted, v.fresh, v.flows, v.seen, v.strays}
}

// ruleset are the names of what is in the kernel.
type ruleset struct {
	table    *nftables.Table
	server   bool
	idle     time.Duration
	versions [2]version // IPv4, IPv6
	names    *nftables.Set
}

// kind is what differs between sets of one version.
type kind struct {
	name    string
	size    uint32 // 0: no bound
	timeout time.Duration
	// expires is set where elements have timeouts of their own, dynamic where packets add elements, goes where elements are verdicts.
	expires, dynamic, goes bool
}

func newRuleset(c Config) *ruleset {
	t := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: c.Table}
	set := func(k kind, suffix string, address nftables.SetDatatype) *nftables.Set {
		key, err := nftables.ConcatSetType(address, nftables.TypeInetService, address, nftables.TypeInetService)
		if err != nil {
			return nil // four types always fit
		}
		s := &nftables.Set{
			Table: t, Name: k.name + suffix, KeyType: key, Concatenation: true, Size: k.size, Timeout: k.timeout,
			HasTimeout: k.expires || k.timeout != 0, Dynamic: k.dynamic, IsMap: k.goes,
		}
		if k.goes {
			s.DataType = nftables.TypeVerdict
		}
		return s
	}
	of := func(v version, suffix string, address nftables.SetDatatype) version {
		v.held = set(kind{name: "held", expires: true}, suffix, address)
		v.kept = set(kind{name: "kept", expires: true}, suffix, address)
		v.muted = set(kind{name: "muted", expires: true}, suffix, address)
		v.fresh = set(kind{name: "fresh", size: maxFresh, timeout: freshTimeout, dynamic: true}, suffix, address)
		v.flows = set(kind{name: "flows", goes: true}, suffix, address)
		v.seen = set(kind{name: "seen", size: maxSeen, expires: true, dynamic: true}, suffix, address)
		v.strays = set(kind{name: "strays", expires: true, goes: true}, suffix, address)
		return v
	}
	names := &nftables.Set{Table: t, Name: "names", KeyType: nftables.TypeMark, KeyByteOrder: binaryutil.BigEndian}
	return &ruleset{table: t, server: c.Server, idle: c.IdleTimeout, names: names, versions: [2]version{
		of(version{etherType: unix.ETH_P_IP, src: 12, dst: 16, length: 4}, "4", nftables.TypeIPAddr),
		of(version{etherType: unix.ETH_P_IPV6, src: 8, dst: 24, length: 16}, "6", nftables.TypeIP6Addr),
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

// egressName is the name of the chain of what leaves by an interface, and egress that chain.
func egressName(device string) string { return "egress-" + device }

func (r *ruleset) egress(device string) *nftables.Chain {
	c := r.hook(device)
	c.Name, c.Hooknum = egressName(device), nftables.ChainHookEgress
	return c
}

// isHook tells a chain of a former configuration.
func isHook(name string) bool {
	return strings.HasPrefix(name, hookName("")) || strings.HasPrefix(name, egressName(""))
}

func (r *ruleset) node(name string) *nftables.Chain {
	return &nftables.Chain{Table: r.table, Name: name}
}

// keeps is one more direction of a hold: what comes stays at this host.
const keeps gate.Direction = 1 << 7

// directions of a hold are what is asked for; but at an entry a flow that is held in both is one that this host has a frozen socket of, which keeps what
// comes. At a server that may come too fast for the socket to be read.
func (r *ruleset) directions(d gate.Direction) gate.Direction {
	if !r.server && d == gate.Ingress|gate.Egress {
		return keeps | gate.Egress
	}
	return d
}

// holding returns the sets that hold packets of some directions.
func (r *ruleset) holding(f tcprepair.Flow, d gate.Direction) (sets []*nftables.Set) {
	v := r.of(f.Local.Addr().Is4())
	for _, h := range []struct {
		d   gate.Direction
		set *nftables.Set
	}{{gate.Ingress, v.held}, {keeps, v.kept}, {gate.Egress, v.muted}} {
		if d&h.d != 0 {
			sets = append(sets, h.set)
		}
	}
	return sets
}

// hookRules are the rules of such a chain, in order.
func (r *ruleset) hookRules() (rules [][]expr.Any) {
	for i := range r.versions {
		v := &r.versions[i]
		rules = append(rules, v.rule(v.in(v.held), count(countHeld), verdict(expr.VerdictDrop)))
		syn := []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpKind}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{tcpSYN}},
		}
		if r.server {
			rules = append(rules,
				v.rule(syn, verdict(expr.VerdictAccept)),
				v.rule(v.in(v.strays)),
			)
			continue
		}
		rules = append(rules,
			v.rule(v.in(v.kept), verdict(expr.VerdictAccept)),
			v.rule(syn, v.update(v.fresh, freshTimeout), verdict(expr.VerdictAccept)),
			v.rule(v.in(v.fresh), verdict(expr.VerdictAccept)),
			v.rule(v.in(v.flows)),
			v.rule(v.in(v.strays)),
		)
	}
	return rules
}

// egressRules are the rules of what leaves. Its destination is the client.
func (r *ruleset) egressRules() (rules [][]expr.Any) {
	for i := range r.versions {
		v := &r.versions[i]
		rules = append(rules, slices.Concat(v.matchTCP(), []expr.Any{
			// A frozen socket sends none: this is the client's next connection.
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}},
		}, v.loadReply(), []expr.Any{
			&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: v.muted.Name, SetID: v.muted.ID},
		}, count(countMuted), verdict(expr.VerdictDrop)))
	}
	return rules
}

// rule is one rule about TCP over this version.
func (v *version) rule(parts ...[]expr.Any) []expr.Any {
	return slices.Concat(append([][]expr.Any{v.match()}, parts...)...)
}

// in is true of packets whose flow is in the set; with a map, what that says happens to them.
func (v *version) in(s *nftables.Set) []expr.Any {
	return append(v.load(), &expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: s.Name, SetID: s.ID, IsDestRegSet: s.IsMap})
}

// update puts a packet's flow into a set, or has its time there begin anew.
func (v *version) update(s *nftables.Set, timeout time.Duration) []expr.Any {
	return append(v.load(), &expr.Dynset{
		SrcRegKey: unix.NFT_REG32_00, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: timeout,
	})
}

// objectCounter is NFT_OBJECT_COUNTER of linux/netfilter/nf_tables.h.
const objectCounter = 1

func count(name string) []expr.Any { return []expr.Any{&expr.Objref{Type: objectCounter, Name: name}} }

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

// match is true of TCP over this version in frames for this host.
func (v *version) match() []expr.Any {
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.PACKET_HOST}},
	}, v.matchTCP()...)
}

// matchTCP is true of TCP over this version.
func (v *version) matchTCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(v.etherType)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// load puts the key of a client's packet into the registers from NFT_REG32_00 on, loadReply that of a packet to a client.
func (v *version) load() []expr.Any { return v.key(v.src, tcpSource, v.dst, tcpDestination) }

func (v *version) loadReply() []expr.Any { return v.key(v.dst, tcpDestination, v.src, tcpSource) }

func (v *version) key(client, clientPort, service, servicePort uint32) []expr.Any {
	at := uint32(unix.NFT_REG32_00)
	words := v.length / 4
	return []expr.Any{
		&expr.Payload{DestRegister: at, Base: expr.PayloadBaseNetworkHeader, Offset: client, Len: v.length},
		&expr.Payload{DestRegister: at + words, Base: expr.PayloadBaseTransportHeader, Offset: clientPort, Len: 2},
		&expr.Payload{DestRegister: at + words + 1, Base: expr.PayloadBaseNetworkHeader, Offset: service, Len: v.length},
		&expr.Payload{DestRegister: at + 2*words + 1, Base: expr.PayloadBaseTransportHeader, Offset: servicePort, Len: 2},
	}
}

// nodeRules send a frame out of an interface with other addresses. At an entry they note that the flow is in use.
func (r *ruleset) nodeRules(ifindex int, dst, src net.HardwareAddr) (rules [][]expr.Any) {
	for i := range r.versions {
		if v := &r.versions[i]; !r.server {
			rules = append(rules, v.rule(v.update(v.seen, r.idle)))
		}
	}
	write := func(mac net.HardwareAddr, at uint32) []expr.Any {
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: mac},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: at, Len: 6},
		}
	}
	return append(rules, slices.Concat(count(countForwarded), write(dst, ethernetDst), write(src, ethernetSrc), []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(ifindex))},
		&expr.Dup{RegAddr: 1, RegDev: 1, IsRegDevSet: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}))
}
